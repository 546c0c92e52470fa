"""The model card of an exported folder."""

from ml_collections import ConfigDict

from uniser_jax import __version__
from uniser_jax.models.presets import DiTConfig
from uniser_jax.types import TASKS, tasks_digest

_OTHER = "other\nlicense_name: flux-non-commercial-license"
_BASES = {"klein-9b": ("9B", _OTHER)}  # by preset: which FLUX.2 [klein] Base, and its licence; all others are its 4B
_OPEN = ("4B", "apache-2.0")

_TEXT = """---
license: {license}
library_name: diffusers
pipeline_tag: image-to-image
tags: [restoration, flare-removal, dehazing, shadow-removal, reflection-removal]
---

# UniSER, {size}

Removes lens flare, haze, shadows and reflections from photographs, or adds them. Trained with uniser-jax {version}.

{usage}

The prompts (set `{tasks}`): {prompts}.{alone}

## Facts

| | |
|---|---|
| transformer | {parameters:,} parameters, {double} double and {single} single blocks, {dtype} |
| trained | {step} steps of {batch} pairs at {side} px, photographs: `{photos}` |
| parameters | {average} |
| adapters | {adapters} |
| predicts | {prediction}, {steps} Euler step(s) by default |
| JAX against torch | {difference} |

Everything else about the training is in `training_config.json`. {limits}
"""

_ALONE = """ The transformer loads alone as
`Flux2Transformer2DModel.from_pretrained(folder, subfolder="transformer")`."""

_PIXELS = """```python
from diffusers import DiffusionPipeline
from diffusers.utils import load_image
from safetensors.torch import load_file

folder = "."  # where this card lies
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
prompts = load_file(f"{folder}/prompt_embeds.safetensors")
photo = load_image("photo.jpg")
restored = pipe(image=photo, prompt_embeds=prompts["remove_effects"]).images[0]
restored.save("restored.png")
```

`mask=` takes a gray picture of the photograph's size (white: remove, black: leave) and `strength=` a number from 0 to 1.
`pipeline.py` is all there is beside the transformer."""

_PIXELS_LIMITS = """Photographs much larger than those of the training are restored small and the change is carried
over by local affine maps; the command line of uniser-jax, `uniser restore`, does that more finely and keeps metadata, 16 bits
and alpha."""

_LATENTS = """```python
from diffusers import Flux2KleinPipeline
from diffusers.utils import load_image
from PIL import Image
from safetensors.torch import load_file

folder = "."  # where this card lies
pipe = Flux2KleinPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
prompts = load_file(f"{folder}/prompt_embeds.safetensors")
prompt = prompts["remove_effects"].to(pipe.device, pipe.transformer.dtype)
photo = load_image("photo.jpg")
mask = Image.new("RGB", photo.size, "white")REDUCED  # gray where less should be removed, black where nothing
restored = pipe(image=[photo, mask], prompt_embeds=prompt, num_inference_steps=STEPS).images[0]
restored.save("restored.png")
```"""

_ADAPTERS = """Adapters for FLUX.2 [klein] BASE Base: this folder holds what training added to it, not the model.

```python
from diffusers import Flux2KleinPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import load_image
from PIL import Image
from safetensors.torch import load_file

folder = "."  # where this card lies
base = "black-forest-labs/FLUX.2-klein-base-BASE"  # what was adapted
pipe = Flux2KleinPipeline.from_pretrained(base, text_encoder=None, tokenizer=None)
pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
pipe.load_lora_weights(folder)
prompts = load_file(f"{folder}/prompt_embeds.safetensors")
prompt = prompts["remove_effects"].to(pipe.device, pipe.transformer.dtype)
photo = load_image("photo.jpg")
mask = Image.new("RGB", photo.size, "white")REDUCED  # gray where less should be removed, black where nothing
how = {"num_inference_steps": STEPS, "guidance_scale": 1.0}  # trained without classifier-free guidance
restored = pipe(image=[photo, mask], prompt_embeds=prompt, **how).images[0]
restored.save("restored.png")
```"""

_LATENTS_LIMITS = """The stock pipeline crops sides to multiples of 16 px, makes photographs of more than a megapixel
smaller, and returns what the autoencoder makes of every pixel; the command line of uniser-jax, `uniser restore`, does none of
this."""


_HALF = """ The mask is shown at half the side: give it so, and photographs of at least 128 px with sides that are multiples of
32 px, so that both are cropped alike."""


def _base(config: ConfigDict) -> tuple[str, str]:
    """Size and licence of the base; what was trained from nothing is ours."""
    return _BASES.get(config.model.preset, _OPEN) if config.model.base else _OPEN


def _filled(usage: str, config: ConfigDict) -> str:
    scale = config.model.mask_scale
    words = {
        "STEPS": str(config.restore.steps),
        "SHIFT": str(config.restore.shift),
        "BASE": _base(config)[0],
        "REDUCED": "" if scale == 1 else f".reduce({scale})",
    }
    for word, value in words.items():
        usage = usage.replace(word, value)
    return usage


def text(
    config: ConfigDict,
    transformer: DiTConfig,
    step: int,
    dtype: str,
    ema: bool,
    difference: float | str | None,
    adapters: bool = False,
) -> str:
    """The card; what is known only after training is asked for, the rest is in the config.

    `difference` is the largest one of a prediction, or why it is not known; None where none was asked for.
    """
    latents = config.model.codec == "latents"
    usage = _ADAPTERS if adapters else _LATENTS if latents else _PIXELS
    names = [f"`{task.replace(' ', '_')}`" for task in TASKS if task]
    return _TEXT.format(
        license=_base(config)[1],
        size=config.model.preset,
        version=__version__,
        usage=_filled(usage, config),
        limits=(_LATENTS_LIMITS + (_HALF if config.model.mask_scale > 1 else "")) if latents else _PIXELS_LIMITS,
        tasks=tasks_digest(),
        prompts=", ".join(names),
        alone="" if adapters else _ALONE,
        adapters=f"rank {config.lora.rank}, scale {config.lora.alpha / config.lora.rank:g}, of `{config.lora.targets}`"
        if config.lora.rank
        else "none, all parameters were trained",
        parameters=transformer.parameter_count(),
        double=transformer.num_layers,
        single=transformer.num_single_layers,
        dtype={"f32": "float32", "bf16": "bfloat16"}[dtype],
        step=step,
        batch=config.batch_size,
        side=config.data.size,
        photos=config.data.photos,
        average="average over training" if ema else "as of the last step",
        prediction=config.flow.prediction,
        steps=config.restore.steps,
        difference=_compared(difference),
    )


def _compared(difference: float | str | None) -> str:
    if isinstance(difference, float):
        return f"largest difference of a prediction {difference:.1e}"
    if difference is None:
        return "not compared"
    return f"not compared: {difference.replace('|', '/')}"  # a cell of a table
