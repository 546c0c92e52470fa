"""How many training pairs one core renders per second: decode, crop, render, input and exact target.

    python benchmarks/effects.py [--size 512] [--photos DIR] [--json PATH]

Each family alone, the default mixture, and beside them on the same photographs: albumentations' three soft effects (if it is
installed), and our own maths as anyone would first write it, in float64 NumPy. Rates are pairs per second of processor time
on one core. Two threads, and two processes that share nothing, take turns with one thread by the clock: two cores need not
be twice one.
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from uniser_jax import atomic
from uniser_jax.data.photos import Photo, Photos, folder, samples
from uniser_jax.data.pipeline import Examples, Recent, batches, random_crop
from uniser_jax.data.schedule import fixed
from uniser_jax.decoding import Reduction, whole
from uniser_jax.effects import pupil
from uniser_jax.effects.edit import EditSampling, Rendering, asked_for
from uniser_jax.effects.mixture import Mixture
from uniser_jax.types import EFFECTS

_SECONDS = 3.0  # per measurement, after a warm-up
_BATCH, _FILES, _TURNS = 16, 64, 5


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, nargs="*", default=[256, 512], help="sides of the pairs in pixels")
    parser.add_argument("--photos", help="a folder; default: scikit-image's samples as JPEG of 1024 x 768 px")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="per measurement, in turns")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    filled = _filled()
    with tempfile.TemporaryDirectory() as scratch:
        photos = folder(arguments.photos or _as_jpeg(scratch))
        sizes = {size: measure(photos, size, arguments.seconds) for size in arguments.size}
    sys.stdout.write(f"the bank of {pupil.COUNT} pupils: {filled:.1f} s, once per process, before all that follows\n\n")
    for size, results in sizes.items():
        sys.stdout.write(to_text(size, results))
    if arguments.json:  # flat for the last size, and all of them
        atomic.write(arguments.json, json.dumps({**sizes[arguments.size[-1]], "sizes": sizes}, indent=2) + "\n")


def measure(photos: Photos, size: int, seconds: float) -> dict[str, Any]:
    """Everything at one size."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    examples = {
        name: Examples(photos, sampling_of(name), fixed(size), seed=1, colour=0.2) for name in ("default", *EFFECTS)
    }
    calls = {name: each.__getitem__ for name, each in examples.items()} | {"numpy_float64": _plain(photos, size)}
    peer = _albumentations(photos, size)
    if peer is not None:
        calls["albumentations"] = peer
    results: dict[str, Any] = {name: {"pairs_per_second": rate} for name, rate in _rates(calls, seconds).items()}
    for name, each in examples.items():
        results[name]["shares"] = _shares(each)
    four = [1 / results[name]["pairs_per_second"] for name in EFFECTS[:4]]
    results["mean_of_four"] = {"pairs_per_second": 4 / sum(four)}
    results["reuse"] = _reused(photos, size, seconds)
    os.sched_setaffinity(0, cores)
    if len(cores) > 1:
        results["at_once"] = _at_once(photos, size, seconds)
    results["memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return results


def sampling_of(name: str) -> EditSampling:
    """The default mixture, or one effect alone."""
    if name == "default":
        return EditSampling()
    alone = {effect: float(effect == name) for effect in EFFECTS[:4]}
    if name == "occlusion":
        return EditSampling(mixture=Mixture(counts=(0, 1, 0, 0, 0), auxiliary=1.0))
    return EditSampling(mixture=Mixture(counts=(0, 1, 0, 0, 0), auxiliary=0.0, **alone))


def to_text(size: int, results: dict[str, Any]) -> str:
    """A table for people."""
    lines = [f"{size} x {size} px, one core", f"{'':16}{'pairs/s':>9}   share of time"]
    for name in ("default", *EFFECTS):
        shares = ", ".join(f"{step} {share:.0%}" for step, share in results[name]["shares"].items())
        lines.append(f"{name:16}{results[name]['pairs_per_second']:9.1f}   {shares}")
    for name in ("mean_of_four", "numpy_float64", "albumentations"):
        if name in results:
            rate = results[name]["pairs_per_second"]
            ratio = results["mean_of_four"]["pairs_per_second"] / rate
            lines.append(f"{name:16}{rate:9.1f}" + ("" if name == "mean_of_four" else f"   ours: {ratio:.1f} x"))
    reuse = results["reuse"]
    each = (f"{views} views of a pair: {rate:.1f}/s ({rate / reuse['1']:.2f} x)" for views, rate in reuse.items())
    lines.append("reuse           " + ", ".join(each))
    for name, found in results.get("at_once", {}).items():
        lines.append(f"{name:16}{found['pairs_per_second']:9.1f}   {found['ratio']:.2f} x one thread, by the clock")
    lines.append(f"memory          {results['memory_mib']:.0f} MiB at most, so far")
    return "\n".join(lines) + "\n\n"


def _filled() -> float:
    """Fills the bank of pupils, which costs as much as two hundred pairs, and returns how long that took."""
    start = time.process_time()
    for index in range(pupil.COUNT):
        pupil.pattern(index)
    return time.process_time() - start


def _rates(calls: Mapping[str, Callable[[int], Any]], seconds: float) -> dict[str, float]:
    """Of each, the calls per second of processor time over different indices: the median of turns."""
    for call in calls.values():  # compile
        for index in range(200):
            call(index)
    indices = dict.fromkeys(calls, 200)
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_TURNS):
        for name, call in calls.items():
            start, first = time.process_time(), indices[name]
            while time.process_time() - start < seconds / _TURNS:
                call(indices[name])
                indices[name] += 1
            rates[name].append((indices[name] - first) / (time.process_time() - start))
    return {name: statistics.median(turns) for name, turns in rates.items()}


def _reused(photos: Photos, size: int, seconds: float) -> dict[str, float]:
    """Views per second of processor time, with 1, 2 and 4 of them cut from each rendered pair."""

    def of(views: int) -> Callable[[int], Any]:
        examples = Examples(photos, EditSampling(), fixed(size, 1, views), seed=1, colour=0.2)
        return lambda number: examples.views(number * views)

    pairs = _rates({str(views): of(views) for views in (1, 2, 4)}, seconds)
    return {views: int(views) * rate for views, rate in pairs.items()}


def _shares(examples: Examples, count: int = 200) -> dict[str, float]:
    """Processor time of each step of a pair, as a share of them all."""
    clock = dict.fromkeys(("decode", "crop and draw", "layers", "mask", "expose"), 0.0)
    last = 0.0

    def lap(step: str) -> None:
        nonlocal last
        now = time.process_time()
        clock[step] += now - last
        last = now

    timed = _Timed(examples.photos)
    examples = dataclasses.replace(examples, photos=timed, recent=Recent())
    for index in range(count):
        last = time.process_time()
        scene, recipe = examples.recipe(index)
        lap("crop and draw")
        rendering = Rendering(scene, recipe)
        lap("layers")
        mask = rendering.mask()
        lap("mask")
        rendering.pair(rendering.recipe.task, mask)
        lap("expose")
    clock["decode"] = timed.seconds
    clock["crop and draw"] -= timed.seconds
    return {step: seconds / sum(clock.values()) for step, seconds in clock.items()}


class _Timed:
    """Photographs, and the processor time that their decoding took."""

    def __init__(self, photos: Photos):
        self._photos, self.seconds = photos, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._photos, name)

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.reduced(index, whole).pixels

    def reduced(self, index: int, reduction: Reduction) -> Photo:
        """Timed."""
        start = time.process_time()
        photo = self._photos.reduced(index, reduction)
        self.seconds += time.process_time() - start
        return photo


def _at_once(photos: Photos, size: int, seconds: float) -> dict[str, dict[str, float]]:
    """Pairs per second by the clock of one thread, two threads and two processes, and the median ratio of their turns."""
    alone = functools.partial(_clocked, photos, size, 1, seconds)
    with multiprocessing.get_context("spawn").Pool(2, cv2.setNumThreads, (1,)) as pool:
        ways: dict[str, Callable[[], float]] = {
            "one thread": alone,
            "two threads": functools.partial(_clocked, photos, size, 2, seconds),
            "two processes": lambda: sum(job.get() for job in [pool.apply_async(alone) for _ in range(2)]),
        }
        for way in ways.values():  # compile, and fill the banks
            way()
        turns = [{name: way() for name, way in ways.items()} for _ in range(_TURNS)]
    return {
        name: {
            "pairs_per_second": statistics.median(turn[name] for turn in turns),
            "ratio": statistics.median(turn[name] / turn["one thread"] for turn in turns),
        }
        for name in ways
    }


def _clocked(photos: Photos, size: int, threads: int, seconds: float) -> float:
    """Pairs per second by the clock, through the pipeline."""
    stream: Any = batches(Examples(photos, EditSampling(), fixed(size, _BATCH), seed=1, colour=0.2), threads=threads)
    for _ in range(2):
        next(stream)
    start, count = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        next(stream)
        count += _BATCH
    rate = count / (time.monotonic() - start)
    stream.close()
    time.sleep(0.5)  # it still reads ahead
    return rate


def _plain(photos: Photos, size: int) -> Callable[[int], Any]:
    """Our pairs as affine maps, composed and encoded in float64 NumPy."""
    examples = Examples(photos, EditSampling(noise=0, tone=0, jpeg=0), fixed(size), seed=1, colour=0.2)

    def compose(rendering: Rendering, strengths: Sequence[Any]) -> np.ndarray:
        x = rendering.radiance.astype(np.float64)
        for layer, strength in zip(rendering.layers, strengths, strict=True):
            affine = layer.at(strength)
            x = x * affine.transmission.astype(np.float64) + affine.emission.astype(np.float64)
        x = np.clip(x, 0, 1)
        return np.round(255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)).astype(np.uint8)

    def pair(index: int) -> tuple[np.ndarray, np.ndarray]:
        rendering = Rendering(*examples.recipe(index))
        recipe = rendering.recipe
        a = rendering.mask() / 255
        asked = asked_for(recipe.task, rendering.names)
        left = [s * (1 - a) if ask else s for ask, s in zip(asked, recipe.strengths, strict=True)]
        return compose(rendering, list(recipe.strengths)), compose(rendering, left)

    return pair


def _albumentations(photos: Photos, size: int) -> Callable[[int], Any] | None:
    """RandomFog, RandomSunFlare and RandomShadow together, after the same decoding and cropping."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for newer versions otherwise
    try:
        import albumentations
    except ImportError:
        return None
    effects = [getattr(albumentations, name)(p=1.0) for name in ("RandomFog", "RandomSunFlare", "RandomShadow")]
    transform = albumentations.Compose(effects, seed=0)

    def pair(index: int) -> tuple[np.ndarray, np.ndarray]:
        clean = random_crop(np.random.default_rng(index), photos[index % len(photos)], size)
        return transform(image=clean)["image"], clean

    return pair


def _as_jpeg(path: str) -> str:
    """scikit-image's samples as the files that data sets are made of: so many that none is decoded twice in a row."""
    source = samples()
    for number in range(_FILES):
        image = Image.fromarray(source[number % len(source)])
        scale = max(1024 / image.width, 768 / image.height) * (1 + 0.05 * (number // len(source)))
        large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        large.crop((0, 0, 1024, 768)).save(pathlib.Path(path) / f"{number:02d}.jpg", quality=90)
    return path


if __name__ == "__main__":
    main()
