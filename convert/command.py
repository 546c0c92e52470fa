"""What the converters' command lines share."""

import sys
from collections.abc import Callable

from absl import logging

from uniser_jax.errors import reason_of


def run(name: str, work: Callable[[], str]) -> int:
    """Prints what the work says of itself, or one line on what is wrong; returns the exit code, 2 for the caller's mistake."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # orbax warns of the layout of a converted base, which is meant
    try:
        said = work()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{name}: {reason_of(error)}\n")
        return 2
    finally:
        logging.set_verbosity(verbosity)
    sys.stdout.write(f"{said}\n")
    return 0
