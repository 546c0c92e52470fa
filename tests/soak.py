"""Kills a training run at random moments, many times, and checks that it ends as an uninterrupted one.

    python tests/soak.py --kills 20 --steps 60

Half of the kills come while a checkpoint is being written. Compares every leaf of the last checkpoint (its digests) and every
logged value but the clock's; reports kills survived and steps lost. --plot draws both runs.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from launch.report import Panel, read_curve
from uniser_jax.metrics import CLOCK

ROOT = pathlib.Path(__file__).parent.parent
TINY = (
    "--config.batch_size=8",
    "--config.data.size=24",
    "--config.model.prompt_length=2",
    "--config.sample_every=0",
    "--config.evaluation.count=1",
    "--config.log_every=3",  # does not divide the steps between checkpoints: half-logged intervals are resumed too
    "--config.checkpoint.every=4",
)


def start(workdir: pathlib.Path, steps: int) -> subprocess.Popen:
    """The trainer, in a process group of its own."""
    command = [sys.executable, "-m", "uniser_jax.train", f"--config={ROOT}/configs/tiny.py", f"--workdir={workdir}"]
    with (workdir.parent / f"{workdir.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, f"--config.steps={steps}", *TINY], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )


def committed(workdir: pathlib.Path) -> int:
    """The newest whole checkpoint's step, 0 without one; a name in writing is longer than digits."""
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)


def logged(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    """Metrics by step, without the clock's; a last line cut short by a kill does not count."""
    lines = {}
    path = workdir / "metrics.jsonl"
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        lines[line["step"]] = {key: value for key, value in line.items() if key not in CLOCK}
    return lines


def changed(path: pathlib.Path) -> float:
    """When; long ago for what is gone by now."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def digests(workdir: pathlib.Path, step: int) -> dict:
    """As `uniser_jax.checkpoint` wrote them, read without it."""
    return json.loads((workdir / f"checkpoints/{step}/record/metadata").read_text())["digests"]


def live_and_die(workdir: pathlib.Path, steps: int, rng: random.Random) -> int | None:
    """Runs until a random moment after this life's first progress; returns the steps lost, None if the run ended first."""
    started, before = time.time(), committed(workdir)
    process, in_a_save, saves = start(workdir, steps), rng.random() < 0.5, rng.randrange(3)
    while process.poll() is None:
        # Half-written checkpoints of earlier lives lie there too, but they are older.
        writing = any("tmp" in path.name and changed(path) > started for path in workdir.glob("checkpoints/*"))
        if committed(workdir) >= before + saves and (writing if in_a_save else committed(workdir) > before):
            time.sleep(rng.uniform(0, 0.1 if in_a_save else 1.0))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return max(max([0, *logged(workdir)]) - committed(workdir), 0)
        time.sleep(0.005)
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}; see {workdir}.log")
    return None


def soak(folder: pathlib.Path, kills: int, steps: int, seed: int = 0) -> dict[str, Any]:
    """The whole comparison.

    Raises:
      AssertionError: if the killed run differs from the uninterrupted one anywhere.
    """
    whole, killed = folder / "whole", folder / "killed"
    folder.mkdir(parents=True, exist_ok=True)
    if start(whole, steps).wait():
        raise RuntimeError(f"the uninterrupted run failed; see {whole}.log")
    rng, lost, saved = random.Random(seed), [], []
    while len(lost) < kills and (steps_lost := live_and_die(killed, steps, rng)) is not None:
        lost.append(steps_lost)
        saved.append(committed(killed))
    if start(killed, steps).wait():
        raise RuntimeError(f"the last life failed; see {killed}.log")
    assert digests(killed, steps) == digests(whole, steps), "parameters, average or optimizer differ"
    assert logged(killed) == logged(whole), "logged values differ"
    return {
        "kills": len(lost),
        "steps": steps,
        "steps_lost": lost,
        "newest": saved,
        "leaves": len(digests(whole, steps)["params"]),
    }


def plot(folder: pathlib.Path, resumed: Sequence[int]) -> np.ndarray:
    """The loss of the uninterrupted run as a line, of the killed one as rings, and the steps it continued from."""
    whole, killed = (read_curve(folder / name, "loss") for name in ("whole", "killed"))
    title = f"loss: line uninterrupted; rings killed {len(resumed)} times, continued at the gray lines"
    panel = Panel(title, [step for step, _ in whole], [loss for _, loss in whole], linear_x=True)
    for step in set(resumed):
        panel.mark_at(step, (200, 200, 200))
    for step, _ in (whole[0], whole[-1]):
        panel.tick(step, str(step))
    panel.line(whole, (40, 90, 200))
    for step, loss in killed:
        panel.mark(step, loss, (200, 60, 40), filled=False)
    return panel.image


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path, help="a PNG")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        found = soak(folder, arguments.kills, arguments.steps, arguments.seed)
        if arguments.plot:
            cv2.imwrite(str(arguments.plot), cv2.cvtColor(plot(folder, found["newest"]), cv2.COLOR_RGB2BGR))
    report = json.dumps(found)
    sys.stdout.write(report + "\n")
    if arguments.json:
        arguments.json.write_text(report + "\n")


if __name__ == "__main__":
    main()
