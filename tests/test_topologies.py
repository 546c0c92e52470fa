"""Accelerators by name."""

import math
import re

import pytest

from uniser_jax import topologies
from uniser_jax.flops import CHIPS


@pytest.mark.parametrize("name", topologies._GPUS)
def test_a_gpu_is_described_by_what_is_known_of_it(name: str) -> None:
    gpu = topologies._GPUS[name]
    text = topologies.target_config(gpu)
    values = dict(re.findall(r"(\w+): (\S+)", text))
    assert f'device_description_str: "{gpu.kind}"' in text
    assert text.count("{") == text.count("}")
    assert int(values["device_memory_size"]) == int(CHIPS[gpu.kind].hbm)
    # Peak float32 FLOP/s of the data sheets: two a clock for each lane.
    float32 = {"a100": 19.5e12, "a100-40": 19.5e12, "h100": 67e12, "h200": 67e12, "b200": 75e12}
    flops = 2 * int(values["core_count"]) * int(values["fpus_per_core"]) * float(values["clock_rate_ghz"]) * 1e9
    assert flops == pytest.approx(float32[name], rel=0.01)


@pytest.mark.parametrize("name", topologies._TPUS)
def test_every_tpu_shows_a_kind_whose_memory_is_known(name: str, tpu_devices) -> None:
    shape = "2x2" if name in ("v3", "v5e", "v6e") else "2x2x1"
    devices = topologies.devices_of(f"{name}:{shape}")
    (kind,) = {device.device_kind for device in devices}
    assert kind in CHIPS
    assert math.isfinite(topologies.memory(kind))
    assert len(devices) == (8 if name in ("v3", "tpu7x") else 4)  # each of their cores is a device


def test_jax_leaves_a_part_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = "NVIDIA H100 80GB HBM3"
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert topologies.memory(kind) == 0.75 * CHIPS[kind].hbm
    assert topologies.memory("TPU v5e of tomorrow") == math.inf
    assert topologies.memory("TPU v5 lite") == CHIPS["TPU v5 lite"].hbm
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")
    assert topologies.memory(kind) == 0.9 * CHIPS[kind].hbm
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(ValueError, match=r"expected a share, as 0\.9"):
        topologies.memory(kind)
