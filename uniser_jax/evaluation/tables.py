"""Results as JSON for programs and as a table for people."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from uniser_jax.evaluation.benchmarks import Scores

_METRICS = ("psnr_input", "psnr_restored", "ssim_input", "ssim_restored")


def to_dict(results: Mapping[str, Scores]) -> dict[str, Any]:
    """`{"effects": {"haze": {"psnr_input": ..., ..., "count": ...}}, "mean": {...}}`; the mean is over effects."""
    effects = {effect: scores.mean() for effect, scores in results.items()}
    mean = {metric: float(np.mean([row[metric] for row in effects.values()])) for metric in _METRICS}
    return {"effects": effects, "mean": mean | {"count": sum(row["count"] for row in effects.values())}}


def to_json(results: Mapping[str, Scores]) -> str:
    """`to_dict` as text."""
    return json.dumps(to_dict(results), indent=2) + "\n"


def to_markdown(results: Mapping[str, Scores]) -> str:
    """A table with a row per effect and one for their mean."""
    table = to_dict(results)
    lines = [
        "| effect | photographs | PSNR input | restored | gain | SSIM input | restored | gain |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for effect, row in (*table["effects"].items(), ("**mean**", table["mean"])):
        before, after, similar, restored = (row[metric] for metric in _METRICS)
        lines.append(
            f"| {effect} | {row['count']} | {before:.2f} | {after:.2f} | {after - before:+.2f} |"
            f" {similar:.4f} | {restored:.4f} | {restored - similar:+.4f} |"
        )
    return "\n".join(lines) + "\n"


def write(path: str | os.PathLike, text: str) -> None:
    """Writes a text file whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
