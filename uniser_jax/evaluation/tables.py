"""Results as JSON for programs and as a table for people."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uniser_jax.evaluation.benchmarks import Scores


def to_dict(results: Mapping[str, Scores]) -> dict[str, Any]:
    """`{"effects": {"haze": {"psnr_input": ..., ..., "count": ...}}, "mean": {...}}`; the mean is over effects."""
    effects = {effect: scores.mean() for effect, scores in results.items()}
    names = dict.fromkeys(name for row in effects.values() for name in row)
    mean = {name: float(np.mean([row[name] for row in effects.values() if name in row])) for name in names}
    return {"effects": effects, "mean": mean | {"count": sum(row["count"] for row in effects.values())}}


def to_json(results: Mapping[str, Scores], left_out: Sequence[str] = ()) -> str:
    """`to_dict` as text, with the names of what is left out, if anything is."""
    return json.dumps(to_dict(results) | ({"left_out": list(left_out)} if left_out else {}), indent=2) + "\n"


def to_markdown(results: Mapping[str, Scores], left_out: Sequence[str] = ()) -> str:
    """A table with a row per effect and one for their mean, and below it how many photographs are left out, if any."""
    table = to_dict(results)
    metrics = [name.removesuffix("_input") for name in table["mean"] if name.endswith("_input")]
    titles = "".join(f" {_title(metric)} input | restored | {_difference(metric)} |" for metric in metrics)
    lines = [f"| effect | photographs |{titles}", "|---|--:|" + "--:|" * 3 * len(metrics)]
    for effect, row in (*table["effects"].items(), ("**mean**", table["mean"])):
        cells = "".join(_cells(row, metric) for metric in metrics)
        lines.append(f"| {effect} | {row['count']} |{cells}")
    if left_out:
        lines += ["", f"Without {len(left_out)} that cannot be used: {', '.join(left_out)}"]
    return "\n".join(lines) + "\n"


def _title(metric: str) -> str:
    name, _, where = metric.partition("_")
    return f"{name.upper()} {where}".strip()


def _difference(metric: str) -> str:
    return "change" if metric.startswith("lab") else "gain"  # an error is better where it falls


def _cells(row: Mapping[str, float], metric: str) -> str:
    if f"{metric}_input" not in row:
        return " | | |"
    before, after = row[f"{metric}_input"], row[f"{metric}_restored"]
    digits = 4 if metric.startswith("ssim") else 2
    return f" {before:.{digits}f} | {after:.{digits}f} | {after - before:+.{digits}f} |"
