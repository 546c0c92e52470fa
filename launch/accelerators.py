"""Names of accelerators: ours, GKE's, XPK's and gcloud's, and how many hosts a slice has."""

import dataclasses
import math
import re

from launch.job import Devices

# generation: GKE's node label, XPK's and gcloud's prefix, cores that the prefix counts per chip, gcloud's runtime version
_TPUS = {
    "v4": ("tpu-v4-podslice", "v4", 2, "tpu-ubuntu2204-base"),
    "v5e": ("tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": ("tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5"),
    "v6e": ("tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e"),
}
_GPUS = {
    "a100": "nvidia-tesla-a100",
    "h100": "nvidia-h100-80gb",
    "h100-mega": "nvidia-h100-mega-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """What a pod asks for.

    Args:
      label: of the node, as GKE knows it.
      topology: of the slice, `4x4`; None for GPUs.
      hosts: per slice.
      chips: per host.
      device_type: of the slice as XPK and gcloud know it, `v5litepod-16`; None for GPUs.
      runtime: the software version of its TPU VMs; None for GPUs.
    """

    label: str
    topology: str | None
    hosts: int
    chips: int
    device_type: str | None
    runtime: str | None

    def devices(self, slices: int = 1) -> Devices:
        """Those of so many slices, or of all nodes."""
        return Devices("tpu" if self.topology else "gpu", self.hosts * self.chips * slices, slices)


def tpu(name: str) -> Accelerator:
    """A slice by the name that ahead-of-time compilation uses too, `v5e:4x4`.

    Raises:
      ValueError: for any other.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if found is None or found[1] not in _TPUS:
        raise ValueError(f"--tpu={name}: expected one of {', '.join(_TPUS)} with a topology, v5e:4x4")
    label, prefix, cores, runtime = _TPUS[found[1]]
    chips = math.prod(map(int, found[2].split("x")))
    per_host = 1 if chips == 1 else 4
    if chips % per_host:
        raise ValueError(f"--tpu={name}: {chips} chips do not fill hosts of {per_host}")
    return Accelerator(label, found[2], chips // per_host, per_host, f"{prefix}-{chips * cores}", runtime)


def gpu(name: str, nodes: int) -> Accelerator:
    """Nodes of GPUs, `h100:8`: eight on each.

    Raises:
      ValueError: for an unknown kind, or no number.
    """
    kind, _, count = name.partition(":")
    if kind not in _GPUS or not count.isdecimal() or int(count) < 1:
        raise ValueError(f"--gpu={name}: expected one of {', '.join(_GPUS)} with a number per node, h100:8")
    return Accelerator(_GPUS[kind], None, nodes, int(count), None, None)
