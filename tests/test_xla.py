"""What XLA is told in its environment."""

import pytest

from uniser_jax import xla


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling=true"),
        ("--xla_a=1", "--xla_a=1 --xla_backend_extra_options=xla_cpu_disable_loop_unrolling=true"),
        ("--xla_backend_extra_options=mine=1", "--xla_backend_extra_options=mine=1"),
    ],
)
def test_flags_are_added_and_none_is_changed(given: str | None, expected: str) -> None:
    environ = {} if given is None else {"XLA_FLAGS": given}
    for _ in range(2):
        xla.prepare(environ)
        assert environ == {"XLA_FLAGS": expected}
