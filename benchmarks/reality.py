"""Statistics of rendered effects beside those of real ones, effect by effect.

    python benchmarks/reality.py --pairs MANIFEST [--photos pairs|samples|DIR] [--count N] [--json PATH] [--markdown PATH]

Real and rendered pairs pass the very same estimators at the same size, so that what an estimator gets wrong, it gets wrong on
both sides. By default effects are rendered on the clean halves of the real pairs: the scenes are the same, too. Each effect is
alone, drawn with the default sampling or with what --families changes of it, at its whole strength, through a camera drawn with
the defaults.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from uniser_jax import atomic
from uniser_jax.data import pairs, photos
from uniser_jax.effects import edit, light
from uniser_jax.errors import reason_of
from uniser_jax.evaluation.estimators import ESTIMATORS, Pair, Row

Image = UInt8[np.ndarray, "h w c"]
Table = dict[str, dict[str, Any]]

_SIDES = {"shadow": 480, "haze": 155, "reflection": 480, "flare": 480}  # longer side; real haze comes as thumbnails


class Summary(NamedTuple):
    """10, 50 and 90 % quantiles of a statistic, and in how many pairs it could be measured; None without any."""

    low: float | None
    median: float | None
    high: float | None
    pairs: int


def real(manifest: pathlib.Path) -> dict[str, list[Pair]]:
    """The real pairs of each effect that the manifest has."""
    found: dict[str, list[Pair]] = {effect: [] for effect in ESTIMATORS}
    for entry in pairs.read_manifest(manifest):
        if entry.effect in found:
            loaded = pairs.load(entry)
            images = (reduced(image, _SIDES[entry.effect]) for image in (loaded.input, loaded.target))
            found[entry.effect].append(Pair(*(light.decode(image) for image in images)))
    if not any(found.values()):
        raise ValueError(f"{manifest}: no real pair of {', '.join(ESTIMATORS)}")
    return found


def rendered(
    effect: str, scenes: Sequence[Image], count: int, seed: int, sampling: edit.EditSampling
) -> Iterator[Pair]:
    """Pairs with one effect; photographs take turns, a window reflects any of them."""
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        photo, other = scenes[index % len(scenes)], scenes[int(rng.integers(len(scenes)))]
        other = cv2.resize(other, photo.shape[1::-1], interpolation=cv2.INTER_AREA)
        scene = edit.scene_from_photo(photo, other, sampling.highlight_stops)
        rendering = edit.Rendering(scene, edit.sample(rng, scene, sampling, effects=(effect,)))
        yield Pair(light.decode(rendering.expose((1.0,))), light.decode(rendering.clean()))


def reduced(image: Image, side: int) -> Image:
    """Scaled down to a longer side of `side` pixels; smaller images stay."""
    ratio = side / max(image.shape[:2])
    if ratio >= 1:
        return image
    size = tuple(max(1, round(n * ratio)) for n in image.shape[1::-1])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def summarise(values: Float[np.ndarray, "n"]) -> Summary:
    """Quantiles of the values that are not NaN."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Summary(None, None, None, 0)
    low, median, high = np.quantile(known, (0.1, 0.5, 0.9)).tolist()
    return Summary(low, median, high, len(known))


def distance(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "m"]) -> float | None:
    """Largest gap between two cumulative distributions (Kolmogorov-Smirnov): 0 is the same, 1 is disjoint."""
    a, b = (np.sort(values[np.isfinite(values)]) for values in (a, b))
    if not len(a) or not len(b):
        return None
    every = np.concatenate([a, b])
    of_a, of_b = (np.searchsorted(values, every, side="right") / len(values) for values in (a, b))
    return float(np.abs(of_a - of_b).max())


def compare(found: Sequence[Row], drawn: Sequence[Row]) -> Table:
    """`{statistic: {"real": {low, median, high, pairs}, "rendered": the same, "distance": d}}`."""
    table = {}
    for name in found[0]:
        a, b = (np.array([row[name] for row in rows]) for rows in (found, drawn))
        table[name] = {"real": summarise(a)._asdict(), "rendered": summarise(b)._asdict(), "distance": distance(a, b)}
    return table


def to_markdown(results: dict[str, Table]) -> str:
    """A table per effect."""
    lines = []
    for effect, table in results.items():
        n, m = (max(row[kind]["pairs"] for row in table.values()) for kind in ("real", "rendered"))
        lines += [f"| **{effect}** | real, {n} pairs | rendered, {m} pairs | distance |", "|---|---|---|--:|"]
        for name, row in table.items():
            lines.append(
                f"| {name} | {_cell(row['real'])} | {_cell(row['rendered'])} | {_number(row['distance'], '.2f')} |"
            )
        lines.append("")
    return "\n".join(lines)


def _cell(summary: dict[str, Any]) -> str:
    return " / ".join(_number(summary[key], ".3g") for key in ("low", "median", "high"))


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)


def sampling_with(text: str) -> edit.EditSampling:
    """The default sampling with families changed: JSON such as {"flare": {"phone": 1}}.

    Raises:
      ValueError: for what is no JSON, no family, no field of one, or a value that it refuses.
    """
    families = edit.EditSampling().families
    try:
        for name, values in json.loads(text).items():
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            changed = dataclasses.replace(getattr(families, name), **values)
            families = dataclasses.replace(families, **{name: changed})
    except (AttributeError, TypeError) as error:
        raise ValueError(f"--families {text}: {error}") from None
    return edit.EditSampling(families=families)


def _scenes(spec: str, effect: str, found: Sequence[Pair], count: int) -> list[Image]:
    if spec == "pairs":
        return [light.encode(pair.clean) for pair in found]
    source = photos.open_photos(spec)
    chosen = np.random.default_rng(0).permutation(len(source))[:count]
    return [reduced(source[int(index)], _SIDES[effect]) for index in chosen]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures both sides and writes the table; a mistake of the caller's is one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=pathlib.Path, required=True, help="a manifest.csv of real pairs")
    parser.add_argument(
        "--photos", default="pairs", help="to render on: the clean halves of the pairs, samples, a folder"
    )
    parser.add_argument("--effect", choices=tuple(ESTIMATORS), help="only this one")
    parser.add_argument("--count", type=int, default=100, help="rendered pairs per effect")
    parser.add_argument("--families", default="{}", help='another sampling, as JSON: {"flare": {"phone": 1}}')
    parser.add_argument("--seed", type=int, default=0, help="of everything rendered")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    arguments = parser.parse_args(argv)
    try:
        results = _results(arguments)
        text = to_markdown(results)
        sys.stdout.write(text)  # first: it took long
        if arguments.json:
            atomic.write(arguments.json, json.dumps(results, indent=2) + "\n")
        if arguments.markdown:
            atomic.write(arguments.markdown, text)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"reality: {reason_of(error)}\n")
        return 2
    return 0


def _results(arguments: argparse.Namespace) -> dict[str, Table]:
    if arguments.count < 1:
        raise ValueError(f"--count {arguments.count}: expected at least 1")
    sampling, results = sampling_with(arguments.families), {}
    for effect, found in real(arguments.pairs).items():
        if found and arguments.effect in (None, effect):
            scenes = _scenes(arguments.photos, effect, found, arguments.count)
            drawn = rendered(effect, scenes, arguments.count, arguments.seed, sampling)
            measured = ([ESTIMATORS[effect](pair) for pair in side] for side in (found, drawn))
            results[effect] = compare(*measured)
    return results


if __name__ == "__main__":
    sys.exit(main())
