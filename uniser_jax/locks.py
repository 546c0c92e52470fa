"""A file that one process at a time holds; the kernel frees it when the last process that inherited it ends, in any way."""

import fcntl
import time
from typing import IO


def take(file: IO[str], tries: int = 1) -> bool:
    """Whether the file is ours now; it is, too, on a disk that knows no locks. Tries are a tenth of a second apart."""
    for attempt in range(tries):
        if attempt:
            time.sleep(0.1)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError:
            pass
        return True
    return False
