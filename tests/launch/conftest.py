"""Stand-ins for gcloud, xpk, kubectl, sbatch and srun: they record what they are asked, and answer what a test lays down."""

import json
import os
import pathlib
import stat
import sys
from typing import Any

import pytest

_STAND_IN = """\
#!{python}
import json, os, pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
name = pathlib.Path(sys.argv[0]).name
text = None if sys.stdin.isatty() or name in ("gcloud", "srun") else sys.stdin.read()
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps({{"argv": [name, *sys.argv[1:]], "text": text or None}}) + "\\n")
answers = json.loads((folder / "answers.json").read_text())
for words, code, output in answers:
    if all(word in " ".join([name, *sys.argv[1:]]) for word in words):
        sys.stdout.write(output)
        sys.exit(code)
"""


class Programs:
    """What the stand-ins were asked, in order, and what they answer."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._answers: list[Any] = []
        self._write()

    def answer(self, *words: str, code: int = 0, output: str = "") -> None:
        """Lays down the exit code and output of calls that hold all these words."""
        self._answers.append((words, code, output))
        self._write()

    def calls(self) -> list[dict[str, Any]]:
        """All calls so far: `argv` and `text`, the standard input."""
        path = self._folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _write(self) -> None:
        (self._folder / "answers.json").write_text(json.dumps(self._answers))


@pytest.fixture
def programs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("gcloud", "xpk", "kubectl", "sbatch", "srun", "scontrol"):
        path = folder / name
        path.write_text(_STAND_IN.format(python=sys.executable, folder=str(folder)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Programs(folder)
