"""Photographs of any size."""
from collections.abc import Callable
import numpy as np
from jaxtyping import Float32, Shaped, UInt8

Network = Callable[[Float32[np.ndarray, "b h w c"], Float32[np.ndarray, "b h w"]], Float32[np.ndarray, "b h w c"]]


def restore_any_size(
    photo: Shaped[np.ndarray, "h w c"],
    mask: UInt8[np.ndarray, "h w"],
    network: Network,
    working_size: int,
    patch: int,
) -> Shaped[np.ndarray, "h w c"]:
    """Restores a photograph of any size."""
    if not mask.any():
        return photo.copy()
    raise NotImplementedError
