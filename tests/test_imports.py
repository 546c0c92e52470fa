"""Imports only go down, and the data side never loads jax."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "uniser_jax"

# A module may import from rooms of a lower level, and from its own room.
LEVELS = {
    "types": 0,
    "hosts": 1,
    "errors": 0,
    "atomic": 0,
    "locks": 0,
    "decoding": 0,
    "digest": 0,
    "xla": 0,
    "status": 0,
    "mesh": 1,
    "feed": 1,
    "effects": 1,
    "data": 2,
    "models": 2,
    "diffusion": 3,
    "optim": 3,
    "checkpoint": 3,
    "config": 4,
    "metrics": 4,
    "watchdog": 4,
    "profiling": 4,
    "manifest": 4,
    "pretrained": 5,
    "step": 5,
    "hlo": 0,
    "flops": 6,
    "topologies": 7,
    "remedies": 4,
    "aot": 8,
    "samples": 6,
    "train": 7,
    "restore": 8,
    "evaluation": 9,
    "demo": 10,
    "cli": 10,
}


def room(module: str) -> str:
    return module.split(".")[1]


def imported(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} if node.module != "uniser_jax" else {f"uniser_jax.{a.name}" for a in node.names}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_go_down(path: pathlib.Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return
    own = parts[0]
    names = imported(path)
    for name in names:
        assert not name.startswith(("convert", "launch"))
        assert name.partition(".")[0] not in ("torch", "diffusers", "transformers", "peft"), "torch is never needed"
        if name.startswith("uniser_jax.") and name != "uniser_jax.__version__":
            assert room(name) == own or LEVELS[room(name)] < LEVELS[own], f"{own} imports {name}"
    if own != "checkpoint":
        assert not any(name.startswith("orbax") for name in names), "only checkpoint.py knows orbax"


def test_data_workers_do_not_pay_for_jax() -> None:
    code = (
        "import sys, uniser_jax.data.photos, uniser_jax.effects.gallery, uniser_jax.types;"
        "sys.exit('jax' in sys.modules or 'tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
