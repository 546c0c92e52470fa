"""Real pairs: a degraded photograph and the same view without the effect, to evaluate and train on."""

import collections
import csv
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from absl import logging
from jaxtyping import UInt8
from numpy import ndarray

from uniser_jax import decoding
from uniser_jax.data.photos import warn_once
from uniser_jax.errors import reason_of
from uniser_jax.types import EFFECTS

_COLUMNS = ("effect", "set", "id", "kind", "input", "gt")


class Entry(NamedTuple):
    """One row of a manifest that names a pair."""

    effect: str
    set: str
    id: str
    kind: str
    input: pathlib.Path
    target: pathlib.Path
    mask: pathlib.Path | None  # where the effect was removed in the target; None is everywhere

    @property
    def name(self) -> str:
        """For logs."""
        return f"{self.set}/{self.id}"

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """Input, target and, where there is one, mask."""
        return (self.input, self.target, *([self.mask] if self.mask else []))


class RealPair(NamedTuple):
    """A pair's pixels, of equal size."""

    input: UInt8[ndarray, "h w c"]
    target: UInt8[ndarray, "h w c"]
    mask: UInt8[ndarray, "h w"] | None


def read_manifest(path: str | pathlib.Path, kinds: tuple[str, ...] = ("real_pair",)) -> list[Entry]:
    """Reads the rows of a manifest that are pairs of an effect; others are counted in a warning.

    Args:
      path: a CSV file with the columns effect, set, id, kind, input, gt and optionally mask; files are relative to it.
      kinds: beginnings of the kinds to keep.

    Raises:
      ValueError: for a missing file or column, what is no CSV in UTF-8, a row without one of its files, a file outside the
        manifest's folder, or no row that is left.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"no manifest at {str(path)!r}; expected a CSV file with the columns {', '.join(_COLUMNS)}")
    entries: list[Entry] = []
    dropped: collections.Counter[str] = collections.Counter()
    for number, row in enumerate(_rows(path), 2):
        if reason := _dropped(row, kinds):
            dropped[reason] += 1
        else:
            entries.append(_entry(path, number, row))
    reasons = "; ".join(f"{count} with {reason}" for reason, count in dropped.items())
    if not entries:
        raise ValueError(f"{path}: no pair to use, of {dropped.total()} rows {reasons or 'none is left'}")
    if dropped:
        logging.warning(
            "%s: %d of %d rows left out: %s", path, dropped.total(), len(entries) + dropped.total(), reasons
        )
    return entries


def load(entry: Entry, crop: bool = False) -> RealPair:
    """Decodes a pair.

    Args:
      entry: of a manifest.
      crop: cut a larger target to the middle that the photograph shows, as of SOTS' rooms, whose clear images have a border.

    Raises:
      ValueError: if a file cannot be decoded, or sizes differ.
    """
    decoded = []
    for file in entry.files:
        try:
            decoded.append(decoding.decode(file.read_bytes()))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: {reason_of(error)}") from None
    if crop:
        decoded[1] = _middle(decoded[1], decoded[0].shape[:2])
    sizes = {image.shape[:2] for image in decoded}
    if len(sizes) > 1:
        raise ValueError(f"{entry.name}: sizes differ, {' and '.join(map(str, sorted(sizes)))}")
    return RealPair(decoded[0], decoded[1], decoded[2][..., 0] if entry.mask else None)


def load_usable(entries: Sequence[Entry], index: int) -> tuple[Entry, RealPair]:
    """Decodes a pair, or the next one that can be, always the same, with a warning that names the file.

    Raises:
      ValueError: if none can be.
    """
    for offset in range(len(entries)):
        entry = entries[(index + offset) % len(entries)]
        try:
            return entry, load(entry)
        except ValueError as error:
            warn_once(entry.name, str(error))
    raise ValueError(f"none of {len(entries)} real pairs can be decoded, the first being {entries[0].input}")


def digest_of(entries: Sequence[Entry]) -> str:
    """Of effects, names and lengths of files, in order; a file that has gone has none."""
    made = hashlib.sha256()
    for entry in entries:
        sizes = [file.stat().st_size if file.is_file() else 0 for file in entry.files]
        made.update(f"{entry.effect}\0{entry.set}\0{entry.id}\0{sizes}\0".encode())
    return made.hexdigest()


def _middle(image: ndarray, shape: tuple[int, ...]) -> ndarray:
    top, left = (max(0, (n - m) // 2) for n, m in zip(image.shape, shape, strict=False))
    return image[top : top + shape[0], left : left + shape[1]]


def _rows(manifest: pathlib.Path) -> Iterator[dict[str, str]]:
    """The rows of a manifest, which may begin with the mark that spreadsheets write before UTF-8."""
    with manifest.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            missing = [column for column in _COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                raise ValueError(f"{manifest}: no column {missing[0]!r}; expected {', '.join(_COLUMNS)}")
            yield from rows
        except csv.Error as error:  # a quote that is never closed, a field without end
            raise ValueError(f"{manifest}:{rows.line_num + 1}: {error}; expected CSV") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{manifest}: {error}; save it as UTF-8") from None


def _dropped(row: dict[str, str], kinds: tuple[str, ...]) -> str:
    """Why a row is no pair of an effect; empty if it is one."""
    if not (row["kind"] or "").startswith(kinds):
        return f"kind {row['kind']!r}, expected {' or '.join(kinds)}"
    if row["effect"] not in EFFECTS:
        return f"effect {row['effect']!r}, expected {', '.join(EFFECTS)}"
    return "" if row["gt"] else "no gt"


def _entry(manifest: pathlib.Path, number: int, row: dict[str, str]) -> Entry:
    root = manifest.parent.resolve()
    files = []
    for column in ("input", "gt", "mask"):
        name = row.get(column) or ""
        try:
            file = (root / name).resolve()
            found = file.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL, links in a circle
            raise ValueError(f"{manifest}:{number}: {column} {name!r} is not a file: {reason_of(error)}") from None
        if name and not file.is_relative_to(root):
            raise ValueError(f"{manifest}:{number}: {column} {name!r} lies outside the manifest's folder")
        if not found and (name or column != "mask"):
            raise ValueError(f"{manifest}:{number}: {column} {name!r} is not a file")
        files.append(file if name else None)
    return Entry(row["effect"], row["set"], row["id"], row["kind"], files[0], files[1], files[2])  # type: ignore[arg-type]
