"""The command line as its users meet it."""

import json
import pathlib

import cv2
import numpy as np
import pytest
from PIL import Image

from uniser_jax import cli, demo, train
from uniser_jax import config as schema
from uniser_jax.checkpoint import has_checkpoint

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = str(ROOT / "configs/tiny.py")
FAST = [  # the programs of tests/test_train.py, from the cache
    "--config.steps=6",
    "--config.batch_size=8",
    "--config.sample_every=0",
    "--config.data.size=24",
    "--config.mesh.data=8",
    "--config.model.prompt_length=2",
    "--config.evaluation.count=1",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """`make demo`, tiny."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    assert demo.main(["--config", CONFIG, "--workdir", str(run), *FAST]) == 0
    return run


@pytest.fixture
def photo(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def test_the_demo_leaves_what_it_says(finished: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    table = json.loads((finished / "evaluation.json").read_text())
    assert list(table["effects"]) == ["shadow", "haze", "reflection", "flare", "occlusion", "mixture"]
    assert set(table["effects"]["haze"]) == {"psnr_input", "psnr_restored", "ssim_input", "ssim_restored", "count"}
    assert (finished / "evaluation.md").read_text().count("\n") == 9
    for name in ("contact_sheet.png", "restored.png"):
        with Image.open(finished / name) as image:
            assert image.width > 1_000
    assert has_checkpoint(finished)
    # Run again, it keeps what is finished.
    lines = (finished / "metrics.jsonl").read_text()
    assert demo.main(["--config", CONFIG, "--workdir", str(finished), *FAST]) == 0
    assert (finished / "metrics.jsonl").read_text() == lines
    printed = capsys.readouterr().out
    assert "| **mean** |" in printed
    assert "uniser restore" in printed


def test_a_checkpoint_can_be_chosen(finished, photo: pathlib.Path, capsys) -> None:
    out = photo.with_name("out.png")
    command = ["restore", str(photo), "-o", str(out), "--checkpoint", str(finished), "--at"]
    assert cli.main([*command, "best"]) == 0
    assert cli.main([*command, "newest"]) == 0
    assert out.exists()
    assert cli.main([*command, "7"]) == 2
    assert "no checkpoint of step 7" in capsys.readouterr().err


def test_restore_writes_a_photograph_of_the_same_size(finished, photo: pathlib.Path) -> None:
    out = photo.with_name("out.jpg")
    command = [
        "restore",
        str(photo),
        "-o",
        str(out),
        "--checkpoint",
        str(finished),
        "--task",
        "haze",
        "--strength",
        "0.7",
    ]
    assert cli.main([*command, "--steps", "2"]) == 0
    with Image.open(out) as image:
        assert image.size == (60, 40)


def test_the_newest_run_is_the_default(finished, photo: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parent.parent)
    finished.parent.rename(finished.parent.parent / "runs")
    try:
        assert cli.main(["restore", str(photo), "-o", str(photo.with_name("out.png"))]) == 0
    finally:
        (finished.parent.parent / "runs").rename(finished.parent)


@pytest.mark.parametrize("flags", [["--strength", "0"], ["--mask", "black.png"]])
def test_nothing_asked_changes_no_pixel(finished, photo: pathlib.Path, flags: list[str]) -> None:
    Image.new("L", (60, 40)).save(photo.with_name("black.png"))
    flags = [str(photo.with_name(flag)) if flag.endswith(".png") else flag for flag in flags]
    out = photo.with_name("out.png")
    assert cli.main(["restore", str(photo), "-o", str(out), "--checkpoint", str(finished), *flags]) == 0
    with Image.open(photo) as before, Image.open(out) as after:
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "none.png"}, "none.png"),
        ({"input": "empty.png"}, "empty.png"),
        ({"input": "text.png"}, "text.png"),
        ({"--mask": "small.png"}, "mask"),
        ({"--checkpoint": "nowhere"}, "no checkpoint"),
        ({"--task": "rain"}, "rain"),
        ({"--strength": "1.5"}, "1.5"),
        ({"--steps": "0"}, "from 1 to 1000"),
        ({"--steps": "100000"}, "from 1 to 1000"),
        ({"--task": "haze,shadow"}, "'effects' are all at once"),
        ({"--stren": "0.3"}, "--stren"),
        ({"--output": "out.xyz"}, "xyz"),
        ({"--colour": "red"}, "--colour"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(finished, photo, change, message, capsys) -> None:
    folder = photo.parent
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    Image.new("L", (20, 20)).save(folder / "small.png")
    given = {"--checkpoint": str(finished), "--output": "out.png"} | change
    paths = ("--output", "--mask")
    source = folder / given.pop("input", "in.png")
    flags = [f"{key}={folder / value if key in paths else value}" for key, value in given.items()]
    assert cli.main(["restore", str(source), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "out.png").exists()


def test_evaluate_writes_its_tables(finished, tmp_path: pathlib.Path, capsys) -> None:
    command = ["evaluate", "--checkpoint", str(finished), "--count", "1", "--json", str(tmp_path / "t.json")]
    assert cli.main([*command, "--markdown", str(tmp_path / "t.md")]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["effects"]["flare"]["count"] == 1
    assert (tmp_path / "t.md").read_text() == capsys.readouterr().out


def test_evaluate_on_real_pairs(finished, photo: pathlib.Path, tmp_path: pathlib.Path, capsys) -> None:
    manifest = photo.with_name("manifest.csv")
    manifest.write_text("effect,set,id,kind,input,gt\nhaze,a,1,real_pair,in.png,in.png\n")
    table = photo.with_name("t.json")
    assert cli.main(["evaluate", "--checkpoint", str(finished), "--pairs", str(manifest), "--json", str(table)]) == 0
    assert json.loads(table.read_text())["effects"]["haze"]["psnr_input"] == 100
    command = ["evaluate", "--checkpoint", str(finished), "--pairs", str(manifest)]
    assert cli.main([*command, "--protocol", "shadow256", "--json", str(table)]) == 0
    assert json.loads(table.read_text())["effects"]["haze"]["lab_input"] == 0
    capsys.readouterr()
    for wrong, message in (
        (["--protocol", "srd"], "--protocol 'srd' is unknown; known: uniform, flare7k"),
        (["--json", str(tmp_path)], "is a folder: expected a file to write"),
        (["--count", "3"], "--count is for rendered edits"),
    ):
        assert cli.main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_evaluate_goes_on_without_a_pair_that_cannot_be_decoded(finished, photo: pathlib.Path, capsys, caplog) -> None:
    manifest, table, sheet = (photo.with_name(name) for name in ("manifest.csv", "t.json", "t.md"))
    photo.with_name("cut.png").write_bytes(photo.read_bytes()[:99])
    rows = [f"haze,a,{k},real_pair,{name}.png,in.png\n" for k, name in enumerate(("in", "cut", "in"))]
    manifest.write_text("effect,set,id,kind,input,gt\n" + "".join(rows))
    command = ["evaluate", "--checkpoint", str(finished), "--pairs", str(manifest), "--json", str(table)]
    assert cli.main([*command, "--markdown", str(sheet)]) == 1
    found = json.loads(table.read_text())
    assert (found["effects"]["haze"]["count"], found["left_out"]) == (2, ["a/1"])
    printed, error = capsys.readouterr()
    assert printed == sheet.read_text()
    assert "Without 1 that cannot be used: a/1" in printed
    assert "not complete, without 1 that cannot be used" in error
    assert "a/1 is left out" in caplog.text


class XlaError(RuntimeError):
    """As jax raises."""


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (lambda: np.zeros(2**55), "Unable to allocate"),
        (lambda: cv2.copyMakeBorder(np.zeros((1, 1), np.uint8), 2**30, 0, 2**30, 0, 0), "Insufficient memory"),
        (
            lambda: raises(XlaError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")),
            "allocating 9 bytes.\n",
        ),
    ],
)
def test_a_lack_of_memory_is_one_line(failure, reason: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(cli, "_restorer", lambda arguments: failure())
    assert cli.main(["evaluate"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("uniser evaluate: not enough memory: ")
    assert reason in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("INTERNAL: a bug"), KeyError("a"), cv2.error("another")])
def test_an_error_of_the_program_stays_whole(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_restorer", lambda arguments: raises(error))
    with pytest.raises(type(error)):
        cli.main(["evaluate"])


def raises(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--count", "0"], "'0': expected a whole number of at least 1"),
        (["preview", "--config", "a", "--index", "-1"], "'-1': expected a whole number of at least 0"),
        (["restore", "a.jpg", "-o", "b.jpg", "--at", "last"], "'last': expected a step, best or newest"),
    ],
)
def test_numbers_that_are_none_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert message in capsys.readouterr().err


def test_evaluate_on_held_out_effects(finished, tmp_path: pathlib.Path, capsys) -> None:
    command = ["evaluate", "--checkpoint", str(finished), "--held-out"]
    assert cli.main([*command, "--count", "1", "--json", str(tmp_path / "t.json")]) == 0
    table = json.loads((tmp_path / "t.json").read_text())
    assert list(table["effects"]) == ["rain", "raindrops", "smudge", "stain", "watermark"]
    assert cli.main([*command, "--pairs", "manifest.csv"]) == 2
    assert "not --pairs" in capsys.readouterr().err


def test_preview_shows_what_the_trainer_will_see(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "sheet.png"
    assert cli.main(["preview", "--config", CONFIG, "--effect", "haze", "--count", "2", "-o", str(out)]) == 0
    *lines, path = capsys.readouterr().out.splitlines()
    assert path == str(out)
    examples, _ = train.open_examples(schema.read(CONFIG))
    for line in lines:
        index, _, text = line.partition(": ")
        assert text == examples.recipe(int(index))[1].to_json()
        assert "haze" in text
    sheet = np.asarray(Image.open(out))
    first = examples[int(lines[0].partition(":")[0])]
    side = first.input.shape[0]
    assert any((sheet[top : top + side, :side] == first.input).all() for top in range(80))
    assert cli.main(["preview", "--config", CONFIG, "--index", "7", "--seed", "3", "-o", str(out)]) == 0
    assert capsys.readouterr().out.startswith("7: ")
    assert cli.main(["preview", "--config", CONFIG, "-o", str(tmp_path / "none/sheet.png")]) == 2
    assert "does not exist; make it first" in capsys.readouterr().err
    assert cli.main(["preview", "--config", "configs/none.py", "--verbose"]) == 2
    never = ["--effect", "flare", "--config.edit.mixture.flare=0"]
    assert cli.main(["preview", "--config", CONFIG, *never, "-o", str(out)]) == 2
    assert "none of the first" in capsys.readouterr().err


def test_train_is_the_same_command(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(train, "main", lambda argv: seen.append(argv) or 0)
    assert cli.main(["train", "--config=a", "--workdir=b"]) == 0
    assert seen == [["--config=a", "--workdir=b"]]


@pytest.mark.parametrize("name", ["train", "status", "aot"])
def test_options_may_come_before_any_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(f"uniser_jax.{name}.main", lambda argv: seen.append(argv) or 0)
    assert cli.main(["--verbose", name, "a", "--verbose"]) == 0
    assert cli.main(["--help", name]) == 0
    assert seen == [["a", "--verbose"], ["--help"]]
