import pathlib
import re

import pytest

from uniser_jax import config as schema
from uniser_jax.diffusion.flow import Flow
from uniser_jax.effects.edit import EditSampling
from uniser_jax.models.lora import Lora

ROOT = pathlib.Path(__file__).parent.parent
TINY = str(ROOT / "configs/tiny.py")
PIXEL = str(ROOT / "configs/pixel.py")
KLEIN = str(ROOT / "configs/klein.py")


def test_overrides_reach_nested_keys() -> None:
    config = schema.read(TINY, ["--config.optim.lr=3e-4", "--config.steps=7", "--config.flow.times.share_at_one=0.25"])
    assert (config.optim.lr, config.steps, config.flow.times.share_at_one) == (3e-4, 7, 0.25)


def test_overrides_reach_the_camera() -> None:
    camera = ["--config.edit.shot=(1e-4, 1e-2)", "--config.edit.read=5e-4,1e-2", "--config.edit.jpeg_quality=(30, 95)"]
    sampling = schema.build(EditSampling, schema.read(TINY, camera).edit)
    assert (sampling.shot, sampling.read, sampling.jpeg_quality) == ((1e-4, 1e-2), (5e-4, 1e-2), (30, 95))
    saved = schema.from_json(schema.to_json(schema.read(TINY, camera)))
    assert schema.build(EditSampling, saved.edit) == sampling


def test_what_stays_for_ever_is_what_is_saved() -> None:
    assert schema.read(TINY, ["--config.checkpoint.keep_every=1500"]).checkpoint.keep_every == 1500


def test_steps_to_profile_are_a_pair() -> None:
    config = schema.read(TINY, ["--config.profile_steps=100,105"])
    assert config.profile_steps == (100, 105)
    assert schema.from_json(schema.to_json(config)) == config


def test_a_config_takes_arguments() -> None:
    assert schema.read(PIXEL + ":size=b").model.preset == "b"
    assert schema.read(PIXEL + ":size=l,image=512").data.size == 512


def test_stages_reach_the_trained_size() -> None:
    config = schema.read(KLEIN + ":stages,image=1024")
    assert schema.schedule(config).stages == ((0, 512, 512), (10_000, 1024, 128))
    assert schema.from_json(schema.to_json(config)) == config  # JSON has no tuples
    assert schema.schedule(schema.read(KLEIN + ":stages,tiny")).stages == ((0, 32, 32), (50, 64, 8))
    assert schema.schedule(schema.read(TINY)).stages == ((0, 96, 16),)


def test_shapes_are_those_of_all_buckets() -> None:
    config = schema.read(KLEIN, ['--config.data.buckets=("1:1", "3:2", "2:3")'])
    assert schema.shapes(config, 512) == [(512, 512), (416, 624), (624, 416)]
    config.model.mask_scale = 2  # a mask of half the side has whole tokens too
    assert schema.shapes(config, 512) == [(512, 512), (416, 608), (608, 416)]


@pytest.mark.parametrize(
    ("path", "override", "message"),
    [
        (TINY, "--config.nonsense=1", "config.nonsense is unknown"),
        (TINY, "--config.modell.patch=1", "config.modell.patch is unknown; did you mean 'model'?"),
        (TINY, "--config.optim.lrr=1", "config.optim.lrr is unknown; did you mean 'lr'?"),
        (TINY, "--config.steps.more=1", "config.steps.more is unknown"),
        (TINY, "--config.steps=many", "many"),
        (TINY, "--config.optim.lr=fast", "fast"),
        (TINY, "--steps=3", "steps"),
        (TINY, "steps=3", "steps=3"),
        (TINY, "--config.steps=0", "at least 1"),
        (TINY, "--config.checkpoint.keep=0", "config.checkpoint.keep = 0: expected at least 1"),
        (TINY, "--config.checkpoint.keep_every=750", "is not a multiple of config.checkpoint.every = 500"),
        (TINY, "--config.restore.steps=0", "config.restore.steps = 0: expected at least 1"),
        (TINY, "--config.restore.shift=0.0", "config.restore.shift = 0.0: expected above 0"),
        (TINY, "--config.optim.lr=nan", "config.optim.lr = nan: expected above 0 and finite"),
        (TINY, "--config.optim.b2=1.5", "config.optim.b2 = 1.5: expected in [0, 1)"),
        (TINY, "--config.optim.final_lr=2.0", "config.optim.final_lr = 2.0: expected in [0, 1]"),
        (
            TINY,
            "--config.optim.weight_decay=-1.0",
            "config.optim.weight_decay = -1.0: expected at least 0 and below 2^63",
        ),
        (TINY, "--config.data.workers=-1", "config.data.workers = -1: expected at least 0"),
        (TINY, "--config.data.threads=0", "config.data.threads = 0: expected at least 1"),
        (TINY, "--config.data.smallest=0.0", "config.data.smallest = 0.0: expected above 0"),
        (TINY, "--config.data.colour=-3.0", "config.data.colour = -3.0: expected in [0, 1]"),
        (TINY, "--config.data.real=1.5", "config.data.real = 1.5: expected in [0, 1]"),
        (TINY, "--config.seed=-1", "config.seed = -1: expected at least 0"),
        (TINY, "--config.seed=9223372036854775808", "expected at least 0 and below 2^63"),
        (TINY, "--config.steps=9223372036854775808", "expected at least 1 and below 2^63"),
        (TINY, "--config.data.min_side=-1", "config.data.min_side = -1: expected at least 0"),
        (
            TINY,
            "--config.edit.mixture.haze=nan",
            "mixture weights = (1.0, nan, 1.0, 1.0): expected none below 0, one above",
        ),
        (TINY, "--config.edit.families.shadow.trees=inf", "shadow weights"),
        (TINY, "--config.optim.clip_norm=0.0", "config.optim.clip_norm = 0.0: expected above 0"),
        (TINY, "--config.optim.clip_norm=nan", "config.optim.clip_norm = nan: expected above 0 and finite"),
        (TINY, "--config.optim.clip_norm=inf", "config.optim.clip_norm = inf: expected above 0 and finite"),
        (TINY, "--config.checkpoint.on_corrupt=prev", "config.checkpoint.on_corrupt = 'prev': expected one of stop"),
        (TINY, "--config.optim.name=adm", "config.optim.name = 'adm': expected one of adamw"),
        (TINY, "--config.model.preset=bb", "config.model.preset = 'bb': expected one of tiny, s, b"),
        (TINY, "--config.model.remat=some", "config.model.remat = 'some': expected one of none, dots"),
        (TINY, "--config.flow.prediction=noise", "residual, x0, velocity"),
        (TINY, "--config.edit.add=2.0", "edit.add = 2.0: expected in [0, 1]"),
        (TINY, "--config.edit.shot=(1e-3, 1e-5)", "edit.shot = (0.001, 1e-05): expected lowest and highest, above 0"),
        (TINY, "--config.edit.read=(0.0, 1e-3)", "edit.read = (0.0, 0.001): expected lowest and highest, above 0"),
        (TINY, "--config.edit.jpeg_quality=(0, 90)", "edit.jpeg_quality = (0, 90): expected lowest and highest"),
        (TINY, "--config.edit.jpeg_quality=(90, 60)", "edit.jpeg_quality = (90, 60): expected lowest and highest"),
        (TINY, "--config.edit.jpeg_quality=(60,)", "edit.jpeg_quality = (60,): expected lowest and highest"),
        (TINY, "--config.profile_steps=7", "expected a first and a last step"),
        (TINY, "--config.profile_steps=105,100", "expected a first and a last step"),
        (TINY, "--config.profile_steps=1.5,2.5", "config.profile_steps = (1.5, 2.5): expected a first and a last step"),
        (TINY, "--config.evaluation.seed=-1", "config.evaluation.seed = -1: expected at least 0"),
        (TINY, "--config.mesh.data=0", "config.mesh.data = 0: expected at least 1, or -1 for all remaining devices"),
        (TINY, "--config.mesh.data=-2", "config.mesh.data = -2: expected at least 1, or -1 for all remaining devices"),
        (TINY, "--config.mesh.fsdp=-1", "config.mesh: data and fsdp are -1: expected one axis"),
        (TINY, "--config.flow.times.std=nan", "flow.times.std = nan: expected at least 0 and finite"),
        (TINY, "--config.flow.times.std=-1.0", "flow.times.std = -1.0: expected at least 0 and finite"),
        (TINY, "--config.flow.times.mean=inf", "flow.times.mean = inf: expected a finite number"),
        (TINY, "--config.lora.alpha=inf", "config.lora.alpha = inf: expected above 0 and finite"),
        (TINY, "--config.restore.direct=nan", "config.restore.direct = nan: expected at least 0 and below 2^63"),
        (TINY, "--config.restore.working_size=-5", "working_size = -5: expected at most 16384, or 0"),
        (TINY, "--config.restore.working_size=10000000", "working_size = 10000000: expected at most 16384, or 0"),
        (TINY, "--config.data.size=97", "multiple of config.model.patch"),
        (TINY, "--config.optim.accumulate=5", "multiple of"),
        (TINY, "--config.data.stages=((0, 48, 16), (5, 60, 16))", "expected (96, 16), config.data.size"),
        (TINY, "--config.data.stages=((0, 50, 16), (5, 96, 16))", "in multiples of 12"),
        (TINY, "--config.data.stages=((0, 48, 16), (0, 96, 16))", "expected 0 first, then ascending"),
        (TINY, "--config.data.stages=((0, 48), (5, 96, 16))", "config.data.stages"),
        (TINY, "--config.data.stages=(5, 96, 16)", "config.data.stages"),
        (KLEIN, "--config.data.stages=((0, 264, 64), (5, 512, 128))", "in multiples of 16"),
        (TINY, "--config.data.reuse=0", "reuse = 0: expected at least 1"),
        (TINY, '--config.data.buckets=("3:2", "wide")', "aspect 'wide': expected width:height"),
        (TINY, "--config.model.mask_scale=2", "expected 1, or 2 by"),
        (PIXEL + ":size=huge", "--config.steps=1", "huge"),
        (PIXEL + ":colour=red", "--config.steps=1", "config argument 'colour' is unknown; known: size"),
        ("configs/missing.py", "--config.steps=1", "no config file"),
    ],
)
def test_mistakes_are_one_clear_line(path: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        schema.read(path, [override])
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("adafactor", "b2", "adafactor ignores it, the decay of its second moments follows the step; leave it at 0.95"),
        ("adafactor", "eps", "adafactor ignores it, it adds 1e-30 to squares; leave it at 1e-08"),
        ("muon", "b1", "muon ignores it, the momentum of its matrices is 0.95; leave it at 0.9"),
    ],
)
def test_a_key_that_an_optimizer_ignores_is_refused(name: str, key: str, message: str) -> None:
    changed = [f"--config.optim.{key}=0.5"]
    assert schema.read(TINY, changed).optim[key] == 0.5
    with pytest.raises(ValueError, match=re.escape(f"config.optim.{key} = 0.5: {message}")) as caught:
        schema.read(TINY, [*changed, f"--config.optim.name={name}"])
    assert "\n" not in str(caught.value)
    schema.read(TINY, [f"--config.optim.name={name}"])


def test_a_config_file_that_sets_an_unknown_key_is_named(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from uniser_jax import config as schema\n\n\ndef get_config():\n    config = schema.defaults()\n    "
    )
    file.write_text(file.read_text() + "config.optim.lrr = 1\n    return config\n")
    with pytest.raises(ValueError, match=r"mine\.py: .*lrr") as caught:
        schema.read(str(file), ["--config.steps=3"])
    assert "\n" not in str(caught.value)


def test_json_round_trip_and_foreign_keys() -> None:
    config = schema.read(TINY, ["--config.optim.lr=0.5"])
    assert schema.from_json(schema.to_json(config)) == config
    with pytest.raises(ValueError, match="does not fit"):
        schema.from_json('{"model": {"colour": "red"}}')


@pytest.mark.parametrize(("kind", "section"), [(Flow, "flow"), (EditSampling, "edit"), (Lora, "lora")])
def test_sections_rebuild_their_dataclass(kind: type, section: str) -> None:
    assert schema.build(kind, schema.defaults()[section]) == kind()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_resolves_and_says_how_to_run(path: pathlib.Path) -> None:
    schema.read(str(path))
    text = path.read_text()
    assert "python -m uniser_jax.train --config=configs/" in text
    assert "Hardware:" in text
    assert "Metric:" in text
