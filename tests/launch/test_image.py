"""The Dockerfile names what is there; building it needs a daemon."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[2]


def test_the_image_is_made_of_what_exists_and_does_not_take_what_it_should_not() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"EXTRA is (\w+), (\w+), or (\w+)", text)[0]) <= set(extras)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)
    folder = re.search(r"^WORKDIR (\S+)$", text, re.MULTILINE)
    assert folder is not None  # where configs/ lies, for --config=configs/...
