"""Removes lens flare, haze, shadows and reflections from a photograph, in plain PyTorch.

    pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
    restored = pipe(image=photo, prompt_embeds=prompts["remove_haze"]).images[0]

Everything is in this file but the transformer, which is diffusers' own. A token is [x_t | photo | mask] of a patch of pixels,
or each of the three has tokens of its own; x_t runs from noise at t = 1 to the restored photograph at t = 0. The same file
is shipped in every exported folder.
"""

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch.nn import functional


class UniSERPipeline(DiffusionPipeline):
    """A transformer in pixel space.

    Args:
      transformer: takes and gives tokens.
      scheduler: Euler steps on an even grid of times.
      patch: side of a token in pixels.
      conditioning: `channels` (photo and mask in each token) or `references` (as images of their own).
      mask_scale: by references, how many times smaller than the photograph the mask is shown.
      prediction: what the transformer predicts: `residual` (restored - photo), `x0` (restored) or `velocity`.
      working_size: square root of the area, in pixels, it was trained for.
      steps: default number of steps.
      direct: times the working size: up to here pixels are the transformer's own, above its change is carried over.
    """

    def __init__(
        self,
        transformer: Flux2Transformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        patch: int = 16,  # without a default diffusers would take it for a component
        conditioning: str = "channels",
        mask_scale: int = 1,
        prediction: str = "residual",
        working_size: int = 256,
        steps: int = 1,
        direct: float = 1.25,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(patch=patch, conditioning=conditioning, mask_scale=mask_scale)
        self.register_to_config(prediction=prediction, working_size=working_size, steps=steps, direct=direct)

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image,
        prompt_embeds: torch.Tensor,
        mask: Image.Image | None = None,
        strength: float = 1.0,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Restores one photograph; where the mask or the strength is 0 it comes back as it was.

        Args:
          image: the photograph, of any size, upright; sRGB is what the transformer knows. Alpha is dropped, a profile kept.
          prompt_embeds: [1, tokens, features], a tensor of `prompt_embeds.safetensors`.
          mask: gray, of the photograph's size: where, and how much; white is everything. None is white.
          strength: in [0, 1].
          num_inference_steps: Euler steps; None takes the trained default.
          generator: of the initial noise; None always takes the same.
          latents: the initial noise itself, [1, 3, height, width] of what the transformer sees.
          output_type: `pil`, `np` ([1, height, width, 3] in [0, 1]) or `pt` ([1, 3, height, width] in [0, 1]).

        Raises:
          TypeError: for what is no picture or no tensor.
          ValueError: for a mask of another size, a strength or steps out of range, or a picture of 32 bits.
        """
        if not 0 <= strength <= 1:  # also catches nan
            raise ValueError(f"strength {strength}: expected from 0 (nothing) to 1 (the whole effect)")
        for name, given, kind in (("image", image, Image.Image), ("prompt_embeds", prompt_embeds, torch.Tensor)):
            if not isinstance(given, kind):
                raise TypeError(f"{name} of type {type(given).__name__}: expected one {kind.__name__}")
        if num_inference_steps is not None and num_inference_steps < 1:
            raise ValueError(f"num_inference_steps {num_inference_steps}: expected at least 1")
        photo = _tensor(image, "RGB")
        if mask is not None and mask.size != image.size:
            sizes = "mask of {} x {} px: expected the photograph's {} x {}"
            raise ValueError(sizes.format(*mask.size, *image.size))
        levels = torch.full_like(photo[:, :1], 255) if mask is None else _tensor(mask, "L")
        soft = torch.round(levels * strength) / 255
        photo, around = photo / 255, soft
        height, width = photo.shape[2:]
        if height * width <= (self.config.direct * self.config.working_size) ** 2:
            whole = self.config.patch * self.config.mask_scale
            rows, columns = (np.pad(np.arange(n), (0, -n % whole), mode="reflect") for n in (height, width))
            seen, soft_seen = (x[:, :, rows][..., columns] for x in (photo, soft))
            restored = self._sample(seen, soft_seen, prompt_embeds, num_inference_steps, generator, latents)
            linear = _decode(restored[..., :height, :width])
        else:
            size = self._working_shape(height, width)
            small = functional.interpolate(_decode(photo), size, mode="area")
            soft_seen = _spread(soft, size)
            around = functional.interpolate(soft_seen, (height, width), mode="bilinear")
            signal = self._sample(_encode(small), soft_seen, prompt_embeds, num_inference_steps, generator, latents)
            linear = _carried_over(_decode(photo), small, _decode(signal))
        gate = (soft / around.clamp(min=1 / 16)).clamp(max=1)
        mixed = _decode(photo) + gate * (linear - _decode(photo))
        result = torch.where(soft == 0, photo, _encode(mixed))
        images = _output(result, output_type)
        if output_type == "pil" and (profile := image.info.get("icc_profile")):
            images[0].info["icc_profile"] = profile  # colours mean what they meant; they were seen as sRGB
        return ImagePipelineOutput(images=images)

    def _sample(
        self,
        photo: torch.Tensor,
        mask: torch.Tensor,
        prompt_embeds: torch.Tensor,
        steps: int | None,
        generator: torch.Generator | list[torch.Generator] | None,
        noise: torch.Tensor | None,
    ) -> torch.Tensor:
        """The restoration of a photograph [1, 3, h, w] in [0, 1], sides whole patches."""
        device, dtype, patch = self._execution_device, self.transformer.dtype, self.config.patch
        if noise is None:
            noise = randn_tensor(photo.shape, generator or torch.Generator().manual_seed(0), device, torch.float32)
        x, photo, mask = noise.to(device), (2 * photo - 1).to(device), mask.to(device)
        rows, columns = photo.shape[2] // patch, photo.shape[3] // patch
        context = prompt_embeds.to(device, dtype)
        references, scale = self.config.conditioning == "references", self.config.mask_scale
        if references:
            if scale > 1:  # in 8 bits, as an image that is given to a stock pipeline
                mask = torch.floor(functional.avg_pool2d(torch.round(255 * mask), scale) + 0.5) / 255
            mask = (2 * mask - 1).expand(-1, 3, -1, -1)
        grids = ((0, 1), (10, 1), (20, scale)) if references else ((0, 1),)
        image_ids = torch.cat([_ids(t, rows // n, columns // n) for t, n in grids]).to(device)
        text_ids = torch.cartesian_prod(*(torch.arange(n, device=device) for n in (1, 1, 1, context.shape[1])))
        steps = steps or self.config.steps
        self.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device)
        for timestep in self.scheduler.timesteps:
            t = timestep / 1000
            tokens = torch.cat([_patches(part, patch) for part in (x, photo, mask)], 1 if references else -1)
            out = self.transformer(
                hidden_states=tokens.to(dtype),
                encoder_hidden_states=context,
                timestep=t[None].to(dtype),
                img_ids=image_ids,
                txt_ids=text_ids,
                return_dict=False,
            )[0].float()
            prediction = functional.pixel_shuffle(
                out[:, : rows * columns].transpose(1, 2).unflatten(2, (rows, columns)), patch
            )
            if self.config.prediction == "velocity":
                velocity = prediction
            else:
                restored = photo + prediction if self.config.prediction == "residual" else prediction
                velocity = (x - restored) / t
            x = self.scheduler.step(velocity, timestep, x, return_dict=False)[0]
        return ((x + 1) / 2).clamp(0, 1).cpu()

    def _working_shape(self, height: int, width: int) -> tuple[int, int]:
        """Of about the trained area and the photograph's aspect, in whole patches."""
        patch, side = self.config.patch * self.config.mask_scale, self.config.working_size
        rows = max(1, round(side * (height / width) ** 0.5 / patch))
        return rows * patch, max(1, round(side**2 / (rows * patch) / patch)) * patch


def _patches(x: torch.Tensor, patch: int) -> torch.Tensor:
    """[1, c, h, w] to row-major tokens [1, n, c * patch * patch]."""
    return functional.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def _ids(t: int, rows: int, columns: int) -> torch.Tensor:
    """Positions (T, H, W, L) of the tokens of one image."""
    return torch.cartesian_prod(torch.tensor([t]), torch.arange(rows), torch.arange(columns), torch.tensor([0]))


def _spread(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The largest of a mask [1, 1, h, w] within reach of the windows of `_carried_over`, reduced and softened.

    So the transformer sees a thin stroke at its full strength, and the gate keeps the edge as sharp as it was drawn.
    """
    for axis, cells in ((2, size[0]), (3, size[1])):
        side = mask.shape[axis]
        reach = round(5 * side / cells)
        spans = ((max(0, n * side // cells - reach), n * side // cells + reach + 1) for n in range(cells))
        largest = [mask.narrow(axis, a, min(b, side) - a).amax(axis, keepdim=True) for a, b in spans]
        mask = torch.cat(largest, axis)
    weights = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / 2)
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    return functional.conv2d(functional.pad(mask, (4, 4, 4, 4), mode="reflect"), kernel[None, None])


def _carried_over(photo: torch.Tensor, small: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """Applies to a large photograph what happened to its reduction, by local affine maps (He et al. 2013).

    All in linear light, where removing a soft effect is affine. `uniser restore` does this with finer maps.
    """

    def mean(x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(functional.pad(x, (4, 4, 4, 4), mode="replicate"), 9, stride=1)

    change = restored - small
    middle, shift = mean(small), mean(change)
    slope = mean((small - middle) * (change - shift)) / (mean((small - middle) ** 2) + (0.01 * middle + 0.0005) ** 2)
    slope, offset = slope.clamp(-1, 7), shift - slope.clamp(-1, 7) * middle
    maps = functional.interpolate(torch.cat([slope, offset], 1), photo.shape[2:], mode="bilinear")
    return photo + maps[:, :3] * photo + maps[:, 3:]


def _decode(stored: torch.Tensor) -> torch.Tensor:
    """sRGB in [0, 1] to linear light (IEC 61966-2-1)."""
    return torch.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)


def _encode(linear: torch.Tensor) -> torch.Tensor:
    """The inverse of `_decode`, clipped to [0, 1]."""
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _tensor(image: Image.Image, mode: str) -> torch.Tensor:
    """Levels [1, c, h, w] in [0, 255]; gray of 16 bits is brought to 8, for Pillow would clip it."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.uint8(np.round(np.asarray(image, np.float32) / 257)))
    if image.mode in ("I", "F"):
        raise ValueError(f"a picture of mode {image.mode}, whose white is not known: expected 8 bits, or 16 in I;16")
    pixels = np.array(image.convert(mode), np.float32)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)[None]


def _output(result: torch.Tensor, kind: str) -> torch.Tensor | np.ndarray | list[Image.Image]:
    if kind == "pt":
        return result
    array = result.permute(0, 2, 3, 1).numpy()
    return array if kind == "np" else [Image.fromarray(np.uint8(np.round(image * 255))) for image in array]
