"""An exported folder beside the run it came from: the same photograph and noise through torch and through JAX.

With the `pipeline.py` that is shipped, the only module that imports torch.
"""

import functools
import importlib.metadata
import pathlib
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image
from safetensors.torch import load_file

from convert import configs, mapping
from convert.tensorfile import open_tensors
from uniser_jax import config as schema
from uniser_jax import pretrained
from uniser_jax.diffusion.flow import Flow
from uniser_jax.diffusion.sampler import restore
from uniser_jax.models import uniser
from uniser_jax.models.codec import PixelCodec
from uniser_jax.models.dit import DiT
from uniser_jax.models.prompts import text_ids
from uniser_jax.step import build_network
from uniser_jax.types import TASKS

_CELLS = (4, 8)  # of what is compared, in patches
_STEPS = 3
_TASK = "remove effects"


def compare(folder: pathlib.Path, config: ConfigDict, params: Any) -> dict[str, Any]:
    """Runs both in float32 with the weights as they are in the folder.

    Returns:
      JSON: the largest differences of one prediction for random tokens (of order one) and of a restored photograph (in
      [0, 1]), how large predictions were, and versions.
    """
    exact = ConfigDict(config.to_dict())
    exact.model.compute_dtype = "float32"
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    klein = config.model.codec == "latents"
    extra = {"text_encoder": None, "tokenizer": None} if klein else {"trust_remote_code": True}
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **extra).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    params = {**params, "dit": _as_exported(folder, params["dit"])}
    with jax.default_matmul_precision("highest"):
        ours, theirs = _predictions(folder, pipe, params)
        restored, expected = _restorations(folder, pipe, exact, params)
    return {
        "transformer": float(np.abs(ours - theirs).max()),
        "transformer_std": float(ours.std()),
        "restoration": float(np.abs(restored - expected).max()),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "jax", "uniser-jax")},
    }


def _as_exported(folder: pathlib.Path, tree: Any) -> Any:
    """The transformer's parameters as the files hold them, rounded if they were."""
    entries = open_tensors(folder / "transformer")
    leaves = {path: np.empty(leaf.shape, np.float32) for path, leaf in mapping.flatten(tree).items()}
    for tensor in mapping.plan(mapping.TRANSFORMER, tree):
        for part, values in mapping.to_ours(tensor, entries[tensor.key].read()):
            leaves[part.path][part.slices] = values
    return mapping.unflatten(leaves)


def _predictions(folder: pathlib.Path, pipe: Any, params: Any) -> tuple[np.ndarray, np.ndarray]:
    size = configs.transformer(configs.read(folder / "transformer" / "config.json"))
    rng = np.random.default_rng(0)
    image_ids, words = PixelCodec(1).ids(*_CELLS), text_ids(8)
    tokens = rng.normal(size=(1, len(image_ids), size.in_channels)).astype(np.float32)
    context = rng.normal(size=(1, len(words), size.joint_attention_dim)).astype(np.float32)
    t = np.array([0.7], np.float32)
    graphdef: Any = nnx.split(nnx.eval_shape(lambda: DiT(size, rngs=nnx.Rngs(0))))[0]
    ours = jax.jit(lambda p, *given: nnx.merge(graphdef, p)(*given, image_ids, words))(
        params["dit"], tokens, context, t
    )
    with torch.no_grad():
        theirs = pipe.transformer(
            hidden_states=torch.tensor(tokens),
            encoder_hidden_states=torch.tensor(context),
            timestep=torch.tensor(t),
            img_ids=torch.tensor(image_ids),
            txt_ids=torch.tensor(words),
            return_dict=False,
        )[0]
    return np.asarray(ours), theirs.numpy()


def _restorations(folder: pathlib.Path, pipe: Any, config: ConfigDict, params: Any) -> tuple[np.ndarray, np.ndarray]:
    network, flow = build_network(config.model), schema.build(Flow, config.flow)
    latents = pretrained.latents(config) if config.model.codec == "latents" else None
    height, width = (cells * config.model.patch * config.model.mask_scale for cells in _CELLS)
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    images, key = jnp.asarray(photo[None] / np.float32(127.5) - 1), jax.random.key(0)
    predict = functools.partial(uniser.apply, network.graphdef, params)
    task = jnp.array([TASKS.index(_TASK)])
    mask = jnp.ones((1, height, width))
    sampled = jax.jit(
        lambda latents: restore(
            predict, flow, key, images, mask, task, _STEPS, config.restore.shift, latents, compensate=False
        )
    )(latents)
    shape = images.shape if latents is None else latents.shape(images.shape)
    noise = np.asarray(jax.random.normal(key, shape))  # as `euler` draws it
    image: Any = Image.fromarray(photo)
    if latents is None:
        pipe.register_to_config(working_size=max(height, width), direct=1.0)  # the network sees every pixel
    else:
        image = [image, Image.new("RGB", image.size, "white").reduce(config.model.mask_scale)]
    theirs = pipe(
        image=image,
        prompt_embeds=load_file(folder / "prompt_embeds.safetensors")[_TASK.replace(" ", "_")],
        num_inference_steps=_STEPS,
        latents=torch.tensor(noise.transpose(0, 3, 1, 2).copy()),
        output_type="np",
    ).images
    return theirs, np.clip((np.asarray(sampled) + 1) / 2, 0, 1)
