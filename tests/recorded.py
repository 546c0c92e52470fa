"""Trains as `uniser_jax.train`, but writes a digest of every row it is fed, and may kill itself once a step is saved.

python -m tests.recorded FOLDER STEP [the trainer's arguments]      # STEP 0: lives
"""

import hashlib
import os
import pathlib
import signal
import sys
from collections.abc import Iterator

from uniser_jax import train
from uniser_jax.checkpoint import Checkpoints
from uniser_jax.data import pipeline
from uniser_jax.types import Batch


def main() -> int:
    folder, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])

    def batches(examples, start: int, blocks: tuple[int, ...], *more: int) -> Iterator[Batch]:
        for step, batch in enumerate(pipeline.batches(examples, start, blocks, *more), start):
            each = len(batch.task) // len(blocks)
            rows = [block * each + row for block in blocks for row in range(each)]
            digests = (hashlib.sha256(b"".join(leaf[row].tobytes() for leaf in batch)) for row in range(len(rows)))
            lines = [f"{step} {row} {one.hexdigest()}\n" for row, one in zip(rows, digests, strict=True)]
            with (folder / f"{start}_{blocks[0]}.txt").open("a") as file:
                file.write("".join(lines))
            yield batch

    class Mortal(Checkpoints):
        def save(self, step: int, *arguments, **settings) -> bool:
            saved = super().save(step, *arguments, **settings)
            if step == last:
                self._manager.wait_until_finished()
                os.kill(os.getpid(), signal.SIGKILL)
            return saved

    train.batches, train.Checkpoints = batches, Mortal
    return train.main(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
