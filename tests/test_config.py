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


def test_overrides_reach_nested_keys() -> None:
    config = schema.read(TINY, ["--config.optim.lr=3e-4", "--config.steps=7", "--config.flow.times.share_at_one=0.25"])
    assert (config.optim.lr, config.steps, config.flow.times.share_at_one) == (3e-4, 7, 0.25)


def test_steps_to_profile_are_a_pair() -> None:
    config = schema.read(TINY, ["--config.profile_steps=100,105"])
    assert config.profile_steps == (100, 105)
    assert schema.from_json(schema.to_json(config)) == config


def test_a_config_takes_arguments() -> None:
    assert schema.read(PIXEL + ":size=b").model.preset == "b"
    assert schema.read(PIXEL + ":size=l,image=512").data.size == 512


@pytest.mark.parametrize(
    ("path", "override", "message"),
    [
        (TINY, "--config.nonsense=1", "nonsense"),
        (TINY, "--config.optim.learning_rate=1", "learning_rate"),
        (TINY, "--config.steps=many", "many"),
        (TINY, "--config.optim.lr=fast", "fast"),
        (TINY, "--steps=3", "steps"),
        (TINY, "steps=3", "steps=3"),
        (TINY, "--config.steps=0", "at least 1"),
        (TINY, "--config.profile_steps=7", "expected a first and a last step"),
        (TINY, "--config.profile_steps=105,100", "expected a first and a last step"),
        (TINY, "--config.data.size=97", "multiple of config.model.patch"),
        (TINY, "--config.optim.accumulate=5", "multiple of"),
        (TINY, "--config.model.mask_scale=2", "expected 1, or 2 by"),
        (PIXEL + ":size=huge", "--config.steps=1", "huge"),
        (PIXEL + ":colour=red", "--config.steps=1", "colour"),
        ("configs/missing.py", "--config.steps=1", "no config file"),
    ],
)
def test_mistakes_are_one_clear_line(path: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        schema.read(path, [override])
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
