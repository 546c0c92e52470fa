"""What is said of an error to someone who shall not read a traceback."""

import math
from collections.abc import Sequence

_NAMED = 5  # in a message


def reason_of(error: BaseException) -> str:
    """Its first line; an error without a word is named."""
    return (str(error) or type(error).__name__).splitlines()[0]


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """The first five, and how many more there are."""
    return separator.join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def check_range(name: str, value: float, least: float, most: float) -> None:
    """Refuses what is not from `least` to `most`.

    Raises:
      ValueError: one line, with the name and the start of the value.
    """
    if not least <= value <= most:
        expected = f"from {least:g} to {most:g}" if least < most else f"{least:g}"
        raise ValueError(f"{name} = {str(value)[:40]}: expected {expected}")


def check_weights(name: str, weights: Sequence[float]) -> None:
    """Refuses what nothing can be drawn by.

    Raises:
      ValueError: one line, if a weight is below 0 or not finite, or none is above 0.
    """
    if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
        raise ValueError(f"{name} = {tuple(weights)}: expected none below 0, one above, all finite")
