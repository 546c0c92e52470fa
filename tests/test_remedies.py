"""What to change, for made-up steps that do not fit."""

import pytest

from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax import remedies
from uniser_jax.remedies import Shortage

GIB = 2**30
MORE = "more chips, or chips with more HBM"


def suggest(mesh: dict[str, int], *overrides: str, needed: float, state: float, **settings) -> list[str]:
    """What to type, for preset l at 512 px on eight chips of 16 GiB."""
    config = schema.read("configs/pixel.py:size=l,image=512", overrides)
    config.mesh.update({"data": 1, "fsdp": 1} | mesh)
    short = Shortage(needed * GIB, 16 * GIB, state * GIB, 1032, "splash", False, 16 * GIB)._replace(**settings)
    found = remedies.suggest(config, meshes.make_mesh(config.mesh.to_dict()), short)
    assert not any("\n" in line for line in found)
    *found, last = found
    assert last == MORE
    assert all(line.endswith(")") for line in found)
    return [line.partition(" (")[0] for line in found]


@pytest.mark.parametrize(
    ("policy", "needed", "expected"),
    [
        ("none", 40, "full"),  # dots keeps 32 GiB of 32 rows
        ("dots", 40, "full"),
        ("full", 40, "offload"),
    ],
)
def test_activations_first_the_next_policy_then_smaller_microbatches(policy: str, needed: float, expected: str) -> None:
    found = suggest({"fsdp": 8}, f"--config.model.remat={policy}", needed=needed, state=0.8)
    assert found == [f"--config.model.remat={expected}", "--config.optim.accumulate=4"]


def test_dots_where_they_are_few_enough() -> None:
    overrides = "--config.model.remat=none", "--config.batch_size=32"
    assert suggest({"fsdp": 8}, *overrides, needed=18, state=0.8) == [
        "--config.model.remat=dots",
        "--config.optim.accumulate=2",
    ]


def test_one_row_is_split_by_tokens_or_by_heads() -> None:
    overrides = "--config.model.remat=offload", "--config.batch_size=8"
    assert suggest({"fsdp": 8}, *overrides, needed=20, state=0.8) == [
        "--config.mesh.sequence=2 --config.mesh.fsdp=4 --config.optim.accumulate=2"
    ]  # nine heads are odd
    assert suggest({"fsdp": -1}, *overrides, "--config.model.preset=xl", needed=20, state=0.8) == [
        "--config.mesh.sequence=2 --config.optim.accumulate=2",
        "--config.mesh.tensor=2 --config.optim.accumulate=2",
    ]


def test_a_large_state_is_shared_before_it_is_rounded() -> None:
    assert suggest({"data": 8}, "--config.model.remat=full", needed=40, state=30) == [
        "--config.mesh.data=1 --config.mesh.fsdp=-1",
        "--config.optim.moments=bfloat16",
        "--config.optim.name=adafactor",
    ]
    cheap = "--config.optim.moments=bfloat16", "--config.optim.name=adafactor"
    assert suggest({"fsdp": 8}, *cheap, needed=40, state=30) == []


def test_what_saves_next_to_nothing_is_not_mentioned() -> None:
    found = suggest({"data": 8}, "--config.model.remat=offload", needed=40, state=0.1)
    assert found == ["--config.optim.accumulate=4"]


def test_of_encoding_only_the_batch_matters() -> None:
    assert suggest({"fsdp": 8}, needed=40, state=0.8, encoding=True) == ["--config.optim.accumulate=4"]


def test_weights_of_attention_come_first() -> None:
    first = suggest({"fsdp": 8}, "--config.model.attention=xla", needed=40, state=0.8, attention="xla")[0]
    assert first == "--config.model.attention=auto"


def test_a_gpu_may_simply_be_given_more() -> None:
    assert (
        suggest({"fsdp": 8}, needed=18, state=0.8, total=20 * GIB)[0]
        == "XLA_CLIENT_MEM_FRACTION=0.92 before the command"
    )
    assert "XLA" not in suggest({"fsdp": 8}, needed=19, state=0.8, total=20 * GIB)[0]
