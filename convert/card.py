"""The model card of an exported folder."""

from ml_collections import ConfigDict

from uniser_jax import __version__
from uniser_jax.models.presets import DiTConfig
from uniser_jax.types import TASKS

_TEXT = """---
license: {license}
library_name: diffusers
pipeline_tag: image-to-image
tags: [restoration, flare-removal, dehazing, shadow-removal, reflection-removal]
---

# UniSER, {size}

Removes lens flare, haze, shadows and reflections from photographs, or adds them. Trained with uniser-jax {version}.

```python
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

folder = "."  # where this card lies
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
prompts = load_file(f"{{folder}}/prompt_embeds.safetensors")
photo = Image.open("photo.jpg")
restored = pipe(image=photo, prompt_embeds=prompts["remove_effects"]).images[0]
restored.save("restored.png")
```

`mask=` takes a gray picture of the photograph's size (white: remove, black: leave) and `strength=` a number from 0 to 1. The
prompts: {prompts}.

`pipeline.py` is all there is beside the transformer, which loads alone as
`Flux2Transformer2DModel.from_pretrained(folder, subfolder="transformer")`. A token is [noisy | photograph | mask] of
{patch} x {patch} pixels, {channels} numbers, channel by channel.

## Facts

| | |
|---|---|
| transformer | {parameters:,} parameters, {double} double and {single} single blocks, {dtype} |
| trained | {step} steps of {batch} pairs at {side} px, photographs: `{photos}` |
| parameters | {average} |
| predicts | {prediction}, {steps} Euler step(s) by default |
| JAX against torch | {difference} |

Everything else about the training is in `training_config.json`. Photographs much larger than {side} px are restored
small and the change is carried over by local affine maps; the command line of uniser-jax, `uniser restore`, does that more
finely and keeps metadata, 16 bits and alpha.
"""


def text(
    config: ConfigDict,
    transformer: DiTConfig,
    step: int,
    dtype: str,
    ema: bool,
    difference: float | None,
    licence: str = "apache-2.0",
) -> str:
    """The card; what is known only after training is asked for, the rest is in the config."""
    names = [f"`{task.replace(' ', '_')}`" for task in TASKS if task]
    return _TEXT.format(
        license=licence,
        size=config.model.preset,
        version=__version__,
        prompts=", ".join(names),
        patch=config.model.patch,
        channels=transformer.in_channels,
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
        difference="not compared" if difference is None else f"largest difference of a prediction {difference:.1e}",
    )
