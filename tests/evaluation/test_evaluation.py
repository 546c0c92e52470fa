import json
import math
import pathlib

import cv2
import numpy as np
import pytest

from uniser_jax.data import pairs
from uniser_jax.data.photos import open_photos, split
from uniser_jax.effects.heldout import HELD_OUT
from uniser_jax.evaluation import benchmarks, tables
from uniser_jax.evaluation.metrics import psnr, ssim
from uniser_jax.types import EFFECTS

PHOTOS = split(open_photos("samples"), 0.25)[1]


def test_psnr_by_hand() -> None:
    target = np.full((20, 20, 3), 100, np.uint8)
    image = target.copy()
    image[0, 0, 0] = 110  # squared error 100 in one of 1200 numbers
    assert psnr(target, image) == pytest.approx(10 * math.log10(255**2 / (100 / 1200)))
    assert psnr(target, target) == 100


def test_ssim_by_hand() -> None:
    """Of two even images only the luminance term is left."""
    a, b = 100.0, 120.0
    c1 = (0.01 * 255) ** 2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    one, two = (np.full((32, 32, 3), v, np.uint8) for v in (100, 120))
    assert ssim(one, two) == pytest.approx(expected, abs=1e-6)
    assert ssim(one, one) == pytest.approx(1)
    with pytest.raises(ValueError, match="11 px"):
        ssim(one[:8], two[:8])


def test_rendered_edits_are_frozen_and_complete() -> None:
    first, second = ([*benchmarks.rendered_edits(PHOTOS, 32, 2, seed=1)] for _ in range(2))
    assert [item.effect for item in first] == [e for e in (*EFFECTS, "mixture") for _ in range(2)]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.input, b.input)
        assert (a.input != a.target).any()
    assert {item.task for item in first if item.effect in ("occlusion", "mixture")} == {"remove effects"}
    assert {item.task for item in first if item.effect == "flare"} == {"remove lens flare"}


def test_held_out_edits_are_frozen_complete_and_asked_for_generically() -> None:
    first, second = ([*benchmarks.held_out_edits(PHOTOS, 64, 2, seed=1)] for _ in range(2))
    assert [item.effect for item in first] == [e for e in HELD_OUT for _ in range(2)]
    assert {item.task for item in first} == {"remove effects"}
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.input, b.input)
        np.testing.assert_array_equal(a.target, b.target)
        assert (a.input != a.target).any()
    trained = benchmarks.rendered_edits(PHOTOS, 64, 1, seed=1)
    assert not {item.effect for item in trained} & set(HELD_OUT)


def test_a_perfect_and_an_idle_restorer() -> None:
    items = list(benchmarks.rendered_edits(PHOTOS, 32, 1, seed=1))
    answers = {item.input.tobytes(): item.target for item in items}
    perfect = benchmarks.evaluate(lambda photo, task, mask: answers[photo.tobytes()], items)
    idle = benchmarks.evaluate(lambda photo, task, mask: photo, items)
    for effect in (*EFFECTS, "mixture"):
        assert perfect[effect].mean()["psnr_restored"] == 100
        mean = idle[effect].mean()
        assert mean["psnr_restored"] == mean["psnr_input"]
        assert mean["count"] == 1


def test_tables() -> None:
    haze = ({"psnr": [10, 20], "ssim": [0.6, 0.8]}, {"psnr": [20, 30], "ssim": [0.8, 1]}, 2)
    flare = ({"psnr": [20], "ssim": [0.5]}, {"psnr": [21], "ssim": [0.6]}, 1)
    results = {"haze": benchmarks.Scores(*haze), "flare": benchmarks.Scores(*flare)}
    table = json.loads(tables.to_json(results))
    assert set(table) == {"effects", "mean"}
    assert table["effects"]["haze"] == {
        "psnr_input": 15,
        "psnr_restored": 25,
        "ssim_input": 0.7,
        "ssim_restored": 0.9,
        "count": 2,
    }
    assert table["mean"]["psnr_restored"] == 23  # over effects, not photographs
    lines = tables.to_markdown(results).splitlines()
    assert lines[2] == "| haze | 2 | 15.00 | 25.00 | +10.00 | 0.7000 | 0.9000 | +0.2000 |"
    assert lines[-1].startswith("| **mean** | 3 | 17.50 | 23.00 | +5.50 |")


@pytest.fixture
def manifest(tmp_path: pathlib.Path) -> pathlib.Path:
    rng = np.random.default_rng(0)
    for name in ("in", "gt", "mask"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((10, 10, 3), np.uint8))
    path = tmp_path / "manifest.csv"
    path.write_text(
        "effect,set,id,kind,input,gt,mask\n"
        "haze,a,1,real_pair,in.png,gt.png,\n"
        "shadow,a,2,real_pair(derived),in.png,gt.png,mask.png\n"
        "haze,a,3,input_only,in.png,,\n"
        "clean,a,4,clean,in.png,gt.png,\n"
        "haze,a,5,synthetic_pair,in.png,gt.png,\n"
    )
    return path


def test_real_pairs(manifest: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    items = list(benchmarks.real_pairs(manifest))
    assert [(item.effect, item.task, item.mask is None) for item in items] == [
        ("haze", "remove haze", True),
        ("shadow", "remove shadow", False),
    ]
    assert items[1].mask.shape == (20, 30)
    expected = "expected real_pair"
    kinds = "; ".join(f"1 with kind '{kind}', {expected}" for kind in ("input_only", "clean", "synthetic_pair"))
    assert caplog.messages == [f"{manifest}: 3 of 5 rows left out: {kinds}"]
    assert len(pairs.read_manifest(manifest, kinds=("real_pair", "synthetic_pair"))) == 3


def test_a_pair_that_cannot_be_decoded_does_not_end_the_others(
    manifest: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest.with_name("cut.png").write_bytes(manifest.with_name("in.png").read_bytes()[:99])
    rows = [f"haze,a,{k},real_pair,{name}.png,gt.png\n" for k, name in enumerate(("cut", "in", "small"))]
    manifest.write_text("effect,set,id,kind,input,gt\n" + "".join(rows))
    left_out: list[str] = []
    assert [item.name for item in benchmarks.real_pairs(manifest, left_out=left_out)] == ["a/1"]
    assert left_out == ["a/0", "a/2"]
    assert "a/0 is left out: " in caplog.text
    assert "a/2 is left out: a/2: sizes differ" in caplog.text
    manifest.write_text("effect,set,id,kind,input,gt\n" + rows[0] + rows[2])
    with pytest.raises(ValueError, match="sizes differ"):
        list(benchmarks.real_pairs(manifest, left_out=[]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("haze,a,1,real_pair,none.png,gt.png,", "'none.png' is not a file"),
        ("haze,a,1,real_pair,../in.png,gt.png,", "outside the manifest"),
        ("haze,a,1,real_pair,/etc/passwd,gt.png,", "outside the manifest"),
        ("haze,a,1,real_pair,loop/in.png,gt.png,", "manifest.csv:2: input 'loop/in.png' is not a file"),
        ("haze,a,1,real_pair,in\0.png,gt.png,", "manifest.csv:2: input .* is not a file"),
        (f"haze,a,1,real_pair,{'n' * 5_000},gt.png,", "manifest.csv:2: input .* is not a file"),
        ("haze,a,1,real_pair,in.png,gt.png,none.png", "manifest.csv:2: mask 'none.png' is not a file"),
        ("haze,a,1,real_pair,in.png,gt.png,.", "manifest.csv:2: mask '.' is not a file"),
        ("haze,a,1,real_pair,in.png,small.png,", "sizes differ"),
        ("haze,a,1,real_pair,manifest.csv,gt.png,", "manifest.csv"),
        ("haze,a,1,input_only,in.png,,", "no pair to use, of 1 rows 1 with kind 'input_only', expected real_pair"),
        ("haze,a,1,real_pair,in.png,,", "no pair to use, of 1 rows 1 with no gt"),
        (
            "glare,a,1,real_pair,in.png,gt.png,",
            "1 with effect 'glare', expected shadow, haze, reflection, flare, occlusion",
        ),
    ],
)
def test_bad_manifests_are_one_line(manifest: pathlib.Path, row: str, message: str) -> None:
    manifest.with_name("loop").symlink_to("loop")
    manifest.write_text(f"effect,set,id,kind,input,gt,mask\n{row}\n")
    with pytest.raises(ValueError, match=message) as caught:
        benchmarks.evaluate(lambda photo, task, mask: photo, benchmarks.real_pairs(manifest))
    assert "\n" not in str(caught.value)


def test_missing_manifests_and_columns(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="no manifest"):
        pairs.read_manifest(tmp_path / "none.csv")
    (tmp_path / "m.csv").write_text("effect,input\n")
    with pytest.raises(ValueError, match="no column 'set'"):
        pairs.read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"haze,a,\xff,real_pair,in.png,gt.png\n", "can't decode byte 0xff .*; save it as UTF-8"),
        (b'haze,a,1,real_pair,"in.png,gt.png\n', "manifest.csv:2: unexpected end of data"),
        (b'haze,a,1,real_pair,"in".png,gt.png\n', "manifest.csv:2: ',' expected after '\"'"),
        (
            b"haze,a,1,real_pair,%s,gt.png\n" % (200_000 * b"n"),
            r"manifest.csv:2: field larger than field limit \(131072\)",
        ),
    ],
)
def test_a_manifest_that_is_no_csv_is_named(manifest: pathlib.Path, rows: bytes, message: str) -> None:
    manifest.write_bytes(b"effect,set,id,kind,input,gt\n" + rows)
    with pytest.raises(ValueError, match=message) as caught:
        pairs.read_manifest(manifest)
    assert str(caught.value).startswith(str(manifest))
    assert "\n" not in str(caught.value)


def test_a_manifest_may_come_from_a_spreadsheet(manifest: pathlib.Path) -> None:
    entries = pairs.read_manifest(manifest)
    manifest.write_bytes(b"\xef\xbb\xbf" + manifest.read_bytes().replace(b"\n", b"\r\n"))
    assert pairs.read_manifest(manifest) == entries
