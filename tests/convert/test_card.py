"""What a model card says of the base."""

import pytest

from convert import card
from uniser_jax import config as schema
from uniser_jax.models.presets import preset


def text_of(size: str, base: str, adapters: bool) -> str:
    config = schema.defaults()
    config.model.preset, config.model.base, config.model.codec = size, base, "latents" if base else "pixels"
    config.lora.rank = 4 if adapters else 0
    return card.text(config, preset(size), 1, "bf16", True, None, adapters)


@pytest.mark.parametrize("adapters", [False, True])
def test_the_licence_and_the_name_are_those_of_the_base(adapters: bool) -> None:
    large, small = text_of("klein-9b", "runs/base", adapters), text_of("klein-4b", "runs/base", adapters)
    assert large.startswith("---\nlicense: other\nlicense_name: flux-non-commercial-license\nlibrary_name:")
    assert small.startswith("---\nlicense: apache-2.0\nlibrary_name:")
    assert "4B" not in large
    assert "BASE" not in large + small
    if adapters:
        assert "FLUX.2 [klein] 9B Base" in large
        assert '"black-forest-labs/FLUX.2-klein-base-9B"' in large
        assert '"black-forest-labs/FLUX.2-klein-base-4B"' in small


def test_what_was_trained_from_nothing_has_no_licence_of_a_base() -> None:
    assert "license: apache-2.0\n" in text_of("klein-9b", "", False)
