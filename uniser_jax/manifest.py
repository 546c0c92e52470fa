"""`run.json` beside the checkpoints: what ran, on what, from which code and data, with which command."""

import concurrent.futures
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from uniser_jax import __version__, atomic, hosts, status
from uniser_jax.data.photos import READERS, Photos, encoded_name

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless")
_SAMPLED = 8  # photographs whose pixels count in the fingerprint


def write(
    workdir: pathlib.Path, config: ConfigDict, mesh: jax.sharding.Mesh, photographs: Mapping[str, Any], step: int
) -> float:
    """Writes the manifest, whole or not at all, on process 0; a continued run keeps its first start and counts on.

    Returns when that was, by the wall clock; other processes do not know and say now.

    Args:
      workdir: the run folder.
      config: of the run.
      mesh: what it trains on.
      photographs: what it trains with, see `describe`.
      step: where it continues from.
    """
    time = datetime.datetime.now(datetime.UTC)
    if jax.process_index() != 0:
        return time.timestamp()
    now = time.isoformat(timespec="seconds")
    before = status.read_manifest(workdir)
    continued = bool(before) or step > 0
    manifest = {
        "command": [sys.executable, *sys.orig_argv[1:]],
        "first_started": before.get("first_started", now),
        "started": now,
        "restarts": before.get("restarts", 0) + (continued and step < config.steps),  # a finished run is not continued
        "from_step": step,
        "host": hosts.host(),
        "processes": jax.process_count(),
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
        "mesh": dict(mesh.shape),
        "photographs": dict(photographs),
        "git": revision(),
        "code": code(),
        "versions": versions(),
        "config": config.to_dict(),
    }
    atomic.write(workdir / status.MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return datetime.datetime.fromisoformat(manifest["first_started"]).timestamp()


def describe(photos: Photos) -> dict[str, Any]:
    """How many photographs, and their fingerprint."""
    return {"count": len(photos), "fingerprint": fingerprint(photos)}


def fingerprint(photos: Photos) -> str:
    """A digest of all names and lengths, in order, and of the pixels of a few.

    A million photographs must not delay a start: lengths count where they can be had without reading the files.
    """
    digest = hashlib.sha256()
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:  # each length is a round trip to a shared disk
        for index, nbytes in enumerate(pool.map(photos.nbytes, range(len(photos)))):
            digest.update(encoded_name(photos, index) + b"\0%d" % nbytes)
    for index in range(0, len(photos), max(1, len(photos) // _SAMPLED)):
        digest.update(photos[index].tobytes())
    return digest.hexdigest()[:16]


@functools.cache
def code() -> str:
    """A digest of this package's files: two hosts with the same revision may still run different code."""
    root = pathlib.Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def revision() -> str | None:
    """The git commit of this code, with `+changes` where files differ from it; None where nobody knows.

    An image or a copy is no clone: there UNISER_REVISION tells.
    """
    root = pathlib.Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        if not (root / ".git").exists():  # git would answer for some repository around us
            return os.environ.get("UNISER_REVISION") or None
        changes = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + changes
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Of Python, this package and those that a result may depend on."""
    found = {"python": platform.python_version(), "uniser-jax": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
