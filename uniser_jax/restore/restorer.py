"""One call from a trained run to a restored photograph.

restorer = Restorer.from_checkpoint("runs/tiny")
restored = restorer(photo, task="haze", strength=0.7)
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Float32, Shaped, UInt8
from ml_collections import ConfigDict

from uniser_jax import config as schema
from uniser_jax import pretrained
from uniser_jax.checkpoint import Checkpoints, has_checkpoint
from uniser_jax.diffusion.flow import Flow
from uniser_jax.diffusion.sampler import restore
from uniser_jax.models import uniser
from uniser_jax.models.codec import LatentCodec, PixelCodec
from uniser_jax.restore.files import MIN_SIDE, RestoreError
from uniser_jax.restore.fullres import padded_side, restore_any_size
from uniser_jax.step import Network, build_network
from uniser_jax.types import TASKS

_MOST_STEPS = 1_000
_SEED = 0  # of the noise a restoration starts from: the same photograph always gives the same result


class Restorer:
    """A trained network, ready for photographs of any size.

    Args:
      graphdef: of the network, see `models.uniser`.
      params: its parameters.
      codec: images to tokens; its patch is the smallest step of a side.
      flow: what the network predicts.
      working_size: square root of the area, in pixels, that the network sees at once.
      steps: Euler steps where a call does not say.
      config: of the run, if there is one.
      direct: see `restore_any_size`.
      latents: the autoencoder to restore through; None restores pixels.
      shift: of the sampler's times.
      compensate: see `diffusion.sampler.restore`.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        params: Any,
        codec: PixelCodec,
        flow: Flow,
        working_size: int,
        steps: int = 1,
        config: ConfigDict | None = None,
        direct: float = 1.25,
        latents: LatentCodec | None = None,
        shift: float = 1.0,
        compensate: bool = True,
    ):
        self.config, self.params, self.codec, self.working_size, self.steps = config, params, codec, working_size, steps
        self.direct, self.latents = direct, latents
        self.patch = (codec.patch if latents is None else latents.side) * codec.mask_scale

        def sample(params: Any, latents: Any, images: Any, mask: Any, task: Any, steps: int) -> Any:
            predict = functools.partial(uniser.apply, graphdef, params)
            return restore(predict, flow, jax.random.key(_SEED), images, mask, task, steps, shift, latents, compensate)

        self._sample: Callable = jax.jit(sample, static_argnames="steps")

    @classmethod
    def from_checkpoint(
        cls,
        run: str | pathlib.Path,
        ema: bool = True,
        compensate: bool | None = None,
        step: int | str | None = None,
        base: str | pathlib.Path | None = None,
    ) -> Self:
        """Loads a checkpoint of a run folder.

        Args:
          run: the run folder.
          ema: whether to take the average of the parameters over training, which restores better.
          compensate: see `diffusion.sampler.restore`; None takes the config's.
          step: which checkpoint: a number, `best` for that with the lowest held-out loss, None for the newest.
          base: see `read_run`.

        Raises:
          RestoreError: if there is no checkpoint.
          ValueError: if it does not fit this version or the base, or there is none of that step.
        """
        if not has_checkpoint(run):
            raise RestoreError(f"{run}: no checkpoint here; name a run folder that `uniser train` has written")
        with Checkpoints(run) as checkpoints:
            found = checkpoints.find(step)
            logging.info("restoring with %s, step %s", run, found)
            config, network, params = read_run(checkpoints, ema, found, base)
        flow = schema.build(Flow, config.flow)
        working_size = config.restore.working_size or config.data.size
        steps, direct, shift = config.restore.steps, config.restore.direct, config.restore.shift
        latents = pretrained.latents(config) if config.model.codec == "latents" else None
        compensate = config.restore.compensate if compensate is None else compensate
        space = {"latents": latents, "shift": shift, "compensate": compensate}
        return cls(network.graphdef, params, network.codec, flow, working_size, steps, config, direct, **space)

    def __call__(
        self,
        photo: Shaped[np.ndarray, "h w *c"],
        task: str | int = "remove effects",
        mask: Shaped[np.ndarray, "h w"] | None = None,
        strength: float = 1.0,
        steps: int | None = None,
    ) -> Shaped[np.ndarray, "h w *c"]:
        """Restores a photograph; where the mask or the strength is 0, the result equals it bit for bit.

        Args:
          photo: sRGB, uint8 or uint16: [h w 3], gray [h w], or with an alpha channel [h w 4], which is kept.
          task: one of TASKS or its index; a bare effect, "haze" or "flare", is removed.
          mask: soft mask aM, uint8 or float in [0, 1]: where, and how much, to restore; None is everywhere.
          strength: in [0, 1]: 1 removes (or adds) the whole effect.
          steps: Euler steps; None takes the config's.

        Returns:
          The restored photograph, of the same shape and type.

        Raises:
          RestoreError: for an unknown task, a mask of another size, a strength or steps out of range, or a photograph
            of another type or fewer than 16 px a side.
        """
        steps = self.steps if steps is None else steps
        soft_mask = _checked(photo, mask, strength, steps)
        network = functools.partial(self._network, task=resolve_task(task), steps=steps)
        colours = photo[..., :3] if photo.ndim == 3 else np.stack([photo] * 3, -1)
        restored = restore_any_size(colours, soft_mask, network, self.working_size, self.patch, self.direct)
        if photo.ndim == 2:
            return np.round(restored.mean(-1)).astype(photo.dtype)
        return np.concatenate([restored, photo[..., 3:]], -1)

    def reconstruct(self, photo: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
        """What the codec alone makes of a photograph; of pixels, the photograph itself."""
        if self.latents is None:
            return photo
        height, width = photo.shape[:2]
        pad = [(0, padded_side(side, self.patch) - side) for side in (height, width)]
        signal = np.pad(photo, [*pad, (0, 0)], mode="reflect") / np.float32(127.5) - 1
        seen = np.asarray(_through(self.latents, signal[None]))[0, :height, :width]
        return np.round(np.clip((seen + 1) * 127.5, 0, 255)).astype(np.uint8)

    def _network(
        self, images: Float32[np.ndarray, "b h w c"], mask: Float32[np.ndarray, "b h w"], task: int, steps: int
    ) -> Float32[np.ndarray, "b h w c"]:
        tasks = jnp.full(len(images), task, jnp.int32)
        return np.asarray(
            self._sample(self.params, self.latents, jnp.asarray(images), jnp.asarray(mask), tasks, steps=steps)
        )


def read_run(
    checkpoints: Checkpoints, ema: bool = True, step: int | None = None, base: str | pathlib.Path | None = None
) -> tuple[ConfigDict, Network, Any]:
    """The config of a run, its network and its parameters; adapters are merged into their base.

    Args:
      checkpoints: of the run.
      ema: whether to take the average of the parameters over training.
      step: which of them, None for the newest.
      base: where the run's base lies; None is where training found it.

    Raises:
      ValueError: if the run does not fit this version, its base is gone or another, or it needs none and one is given.
    """
    record = checkpoints.record(step)
    if "config" not in record:
        raise ValueError("this is a converted base, for config.model.base, and no run; name a run folder")
    config = schema.from_json(json.dumps(record["config"]))
    if base is not None:
        if not (config.lora.rank or config.model.codec == "latents"):
            raise ValueError(f"--base={base}: this run holds all it needs; leave it out")
        config.model.base = str(base)
    pretrained.check_frozen(record, config, pretrained.digests_of(config))
    network = build_network(config.model, config.lora)
    params = checkpoints.weights(network.shapes, ema, step)
    if not config.lora.rank:
        return config, network, params
    return config, build_network(config.model), pretrained.merged(config, network, params)


@jax.jit
def _through(latents: LatentCodec, images: Float32[Any, "b h w c"]) -> Float32[Any, "b h w c"]:
    return latents.decode(latents.encode(images))


def resolve_task(task: str | int) -> int:
    """The index of a task: "remove haze", "haze", "lens flare", "flare", "add shadow", "effects", or an index itself.

    Raises:
      RestoreError: for an unknown task, listing the known ones.
    """
    if isinstance(task, int | np.integer) and 0 <= task < len(TASKS):
        return int(task)
    words = str(task).lower().split()
    name = " ".join("lens flare" if word == "flare" else word for word in words if word != "lens")
    for candidate in (name, f"remove {name}"):
        if candidate in TASKS:
            return TASKS.index(candidate)
    known = ", ".join(filter(None, TASKS))
    raise RestoreError(
        f"task {task!r} is unknown; known: {known}, or a bare effect to remove; 'effects' are all at once"
    )


def _checked(photo: np.ndarray, mask: np.ndarray | None, strength: float, steps: int) -> UInt8[np.ndarray, "h w"]:
    """Checks a call, and gives aM: the mask times the strength, in the 8 bits that the network was trained with."""
    if photo.ndim not in (2, 3) or (photo.ndim == 3 and photo.shape[2] not in (3, 4)):
        raise RestoreError(f"photograph of shape {photo.shape}: expected [h w], [h w 3] or [h w 4]")
    if photo.dtype not in (np.uint8, np.uint16):
        raise RestoreError(f"photograph of type {photo.dtype}: expected uint8 or uint16")
    if min(photo.shape[:2]) < MIN_SIDE:
        raise RestoreError(f"photograph of shape {photo.shape}: expected at least {MIN_SIDE} px a side")
    if not 0 <= strength <= 1:  # also catches nan
        raise RestoreError(f"strength {strength}: expected from 0 (nothing) to 1 (the whole effect)")
    if not 1 <= steps <= _MOST_STEPS:
        raise RestoreError(f"steps {steps}: expected from 1 to {_MOST_STEPS}")
    if mask is None:
        mask = np.ones(photo.shape[:2], np.float32)
    if mask.shape != photo.shape[:2]:
        raise RestoreError(f"mask of shape {mask.shape}: expected that of the photograph, {photo.shape[:2]}")
    if mask.dtype == np.uint8:
        mask = mask.astype(np.float32) / 255
    elif not (np.issubdtype(mask.dtype, np.floating) and mask.min() >= 0 and mask.max() <= 1):
        raise RestoreError(f"mask of type {mask.dtype}: expected uint8, or float in [0, 1]")
    return np.round(mask * np.float32(255 * strength)).astype(np.uint8)
