"""What is said of errors."""

import pytest

from uniser_jax.errors import reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("no space\nat all"), "no space"),
        (OSError(), "OSError"),
        (OSError(28, "no space"), "[Errno 28] no space"),
    ],
)
def test_a_reason_is_one_line_and_never_nothing(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
