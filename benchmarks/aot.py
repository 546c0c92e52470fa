"""Compiles presets for TPU topologies and GPUs that are not here, and writes the table of docs/scale.md.

    python -m benchmarks.aot [--only=xl-512-v5e,...] [--out=docs/scale.md]

A cell is one process of minutes; its result is kept as JSON in runs/aot, so an interrupted table goes on where it was.
Cells whose compiler is not installed are skipped, with a line that says what to install.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

from uniser_jax import atomic

RESULTS = pathlib.Path("runs/aot")
START, END = "<!-- table: make aot -->", "<!-- end of table -->"
_GIB = 2**30


class Cell(NamedTuple):
    """One compilation: what, for which chips, and how the config is changed."""

    config: str
    topology: str
    overrides: tuple[str, ...] = ()


def cells() -> dict[str, Cell]:
    """All cells by name, in the order in which they are compiled: 512 px first, for all sizes and chips."""
    found: dict[str, Cell] = {}
    pods = {  # what one would run each size on
        "b": {"v5e": "4x4", "v5p": "2x2x2", "v6e": "2x4", "h100": "8"},
        "l": {"v5e": "4x8", "v5p": "2x2x4", "v6e": "4x4", "h100": "8"},
        "xl": {"v5e": "8x8", "v5p": "4x4x2", "v6e": "4x8", "h100": "8"},
        "klein-4b": {"v5e": "16x16", "v5p": "4x4x4", "v6e": "8x8", "h100": "2x8"},
        "klein-4b-lora": {"v5e": "4x8", "v5p": "2x2x2", "v6e": "2x4", "h100": "8"},
    }
    for side in (512, 1024):
        for size in reversed(pods):
            for chip, shape in pods[size].items():
                overrides = ["--config.model.remat=full"] if side == 1024 and size in ("b", "l") else []
                if size.startswith("klein"):
                    config = f"configs/klein.py:image={side}" + (",lora" if size.endswith("lora") else "")
                    overrides += ["--config.batch_size=256"] if (size, chip) == ("klein-4b", "v5e") else []
                else:
                    config = f"configs/pixel.py:size={size},image={side}"
                found[f"{size}-{side}-{chip}"] = Cell(config, f"{chip}:{shape}", tuple(overrides))
    return found


def compile_cell(cell: Cell) -> dict[str, Any]:
    """The report of `uniser aot --json`; {"error": line} where there is none."""
    command = [
        sys.executable,
        "-m",
        "uniser_jax.aot",
        f"--config={cell.config}",
        f"--topology={cell.topology}",
        "--json",
    ]
    done = subprocess.run([*command, *cell.overrides], capture_output=True, text=True)
    if done.returncode in (0, 1) and done.stdout:
        return json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if line.startswith("uniser aot:")]
    return {"error": lines[-1] if lines else f"exit code {done.returncode}"}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line per cell that was compiled."""
    head = (
        *("preset", "px", "chips", "mesh", "batch", "remat", "attention"),
        *("tokens", "TFLOPs/step", "state GiB/chip", "peak GiB/chip", "compile, CPU min"),
    )
    lines = [" | ".join(head), " | ".join(["--"] * 2 + [":-"] + ["--"] * (len(head) - 3))]
    for name, r in results.items():
        size, side, _ = name.rsplit("-", 2)
        if "error" in r:
            continue
        mesh = " x ".join(f"{axis} {length}" for axis, length in r["mesh"].items())
        batch = f"{r['batch_size']}" + (f" / {r['accumulate']}" if r["accumulate"] > 1 else "")
        peak = f"{r['peak'] / _GIB:.1f} of {r['hbm'] / _GIB:.1f}" if r["fits"] else f"**{r['needed'] / _GIB:.1f}**"
        peak += "" if r["fits"] else f" of {r['hbm'] / _GIB:.1f}: does not fit"
        flops = f"{r['flops'] / 1e12:,.0f}" + (f" + {r['encode_flops'] / 1e12:,.0f}" if r["encode_flops"] else "")
        row = (size, side, r["topology"], mesh, batch, r["remat"], r["attention"], f"{r['tokens']:,}", flops)
        lines.append(
            " | ".join(
                [
                    *row,
                    f"{r['state'] / _GIB:.2f}",
                    peak,
                    f"{r['compile_cpu_seconds'] / 60:.1f}" if "compile_cpu_seconds" in r else "?",
                ]
            )
        )
    return "".join(f"| {line} |\n" for line in lines)


def main() -> None:
    """Compiles what is missing, then writes the table between its marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="names of cells, with commas; '-' compiles none")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/scale.md"))
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, cell in cells().items():
        path = RESULTS / f"{name}.json"
        if not path.exists() and (not arguments.only or name in arguments.only.split(",")):
            sys.stdout.write(f"{name}: {' '.join((*cell[:2], *cell.overrides))}\n")
            sys.stdout.flush()
            result = compile_cell(cell)
            if "pip install" in result.get("error", ""):
                sys.stdout.write(f"{name}: skipped; {result['error']}\n")
                continue
            atomic.write(path, json.dumps(result) + "\n")
    paths = {name: RESULTS / f"{name}.json" for name in sorted(cells(), key=_order)}
    results = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    text = arguments.out.read_text()
    before, _, rest = text.partition(START)
    arguments.out.write_text(f"{before}{START}\n{table(results)}{END}{rest.partition(END)[2]}")


def _order(name: str) -> tuple[int, int, str]:
    size, side, chip = name.rsplit("-", 2)
    return ("b", "l", "xl", "klein-4b", "klein-4b-lora").index(size), int(side), chip


if __name__ == "__main__":
    main()
