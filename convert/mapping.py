"""Torch keys and our leaves: the one table that serves both directions.

A row names a torch tensor and the leaves it is joined from. `{layer}` in a key counts the leading axis of stacked leaves;
every other placeholder stands for the same number on both sides. A path that ends in `:0` or `:1` is that half of a leaf's
last axis. Values are only moved, never computed with: in both directions, and back, they stay the same bit for bit.

Layouts: torch keeps matrices [out, in] and convolutions [out, in, h, w], we keep [in, out] and [h, w, in, out].
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from uniser_jax.errors import listed

Shape = tuple[int, ...]
# Nested dicts to one, keyed by paths `a/b/c`, and back.
flatten, unflatten = (functools.partial(turn, sep="/") for turn in (flatten_dict, unflatten_dict))
_TO_TORCH: dict[int, Shape] = {0: (), 1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # axes of ours in torch's order, by rank
_TO_OURS: dict[int, Shape] = {0: (), 1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


class Row(NamedTuple):
    """One torch tensor, or one per layer, and what it is joined from."""

    key: str
    paths: tuple[str, ...]
    axis: int = 0  # of the torch tensor, along which parts follow each other: 0 is out, 1 is in
    ones: int = 0  # trailing axes of length 1 that torch has and we do not: a matrix kept as a 1 x 1 convolution


class Part(NamedTuple):
    """A slice of one leaf."""

    path: str
    slices: tuple[Any, ...]
    shape: Shape  # of the slice


class Tensor(NamedTuple):
    """One torch tensor and the parts it is joined from, in order."""

    key: str
    shape: Shape
    axis: int
    parts: tuple[Part, ...]
    ones: int = 0


def row(key: str, *paths: str, axis: int = 0, ones: int = 0) -> Row:
    """A row; without it every single path would be a tuple of one."""
    return Row(key, paths, axis, ones)


def plan(rows: Iterable[Row], tree: Any) -> list[Tensor]:
    """Lays the table over a tree of arrays or shapes: every torch tensor, in the order of the table.

    Rows whose leaves the tree lacks (a guidance embedding, a shortcut) are left out.

    Raises:
      ValueError: if a leaf is not covered exactly once, naming it: the table does not fit the model.
    """
    leaves = {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}
    tensors = [tensor for entry in rows for tensor in _expand(entry, leaves)]
    twice = [key for key, count in Counter(tensor.key for tensor in tensors).items() if count > 1]
    if twice:
        raise ValueError(f"the table gives {listed(twice)} twice")
    covered: Counter[str] = Counter()
    for part in (part for tensor in tensors for part in tensor.parts):
        covered[part.path] += math.prod(part.shape)
    wrong = [path for path, shape in leaves.items() if covered[path] != math.prod(shape)]
    if wrong:
        raise ValueError(f"the table does not cover {listed(wrong)} exactly once")
    return tensors


def check(tensors: Iterable[Tensor], found: Mapping[str, Shape], where: Any) -> None:
    """Compares what a plan needs with what a checkpoint holds, before anything is read.

    Raises:
      ValueError: one line that names keys: missing ones, keys that nothing uses, or shapes that differ.
    """
    wanted = {tensor.key: tensor.shape for tensor in tensors}
    missing = [key for key in wanted if key not in found]
    unused = [key for key in found if key not in wanted]
    differ = [f"{k} is {found[k]}, not {shape}" for k, shape in wanted.items() if k in found and found[k] != shape]
    faults = [
        f"{what} {listed(keys)}"
        for what, keys in (("lacks", missing), ("has unknown", unused), ("has other shapes:", differ))
        if keys
    ]
    if faults:
        raise ValueError(f"{where} {'; '.join(faults)}")


def to_torch(tensor: Tensor, leaf: Callable[[str], Any]) -> np.ndarray:
    """The torch tensor, C-contiguous: writers of safetensors store the memory of a transposed view as it lies.

    Args:
      tensor: an entry of a plan.
      leaf: path to array.
    """
    parts = [np.asarray(leaf(part.path)[part.slices]) for part in tensor.parts]
    turned = [part.transpose(_TO_TORCH[part.ndim]) for part in parts]
    joined = turned[0] if len(turned) == 1 else np.concatenate(turned, tensor.axis)
    return np.asarray(joined.reshape(tensor.shape), order="C")


def to_ours(tensor: Tensor, array: np.ndarray) -> Iterator[tuple[Part, np.ndarray]]:
    """What a torch tensor fills: parts and their values, views of `array`; the inverse of `to_torch`."""
    start = 0
    array = array.reshape(array.shape[: array.ndim - tensor.ones])
    for part in tensor.parts:
        if len(tensor.parts) == 1:
            piece = array
        else:
            length = _turned(part.shape)[tensor.axis]
            piece = array[(slice(None),) * tensor.axis + (slice(start, start + length),)]
            start += length
        yield part, piece.transpose(_TO_OURS[piece.ndim])


def _expand(entry: Row, leaves: Mapping[str, Shape]) -> Iterator[Tensor]:
    pattern = re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(entry.paths[0].partition(":")[0])))
    for path in leaves:
        found = pattern.fullmatch(path)
        if not found:
            continue
        numbers = found.groupdict()
        stacked = "{layer}" in entry.key and "layer" not in numbers
        for layer in range(leaves[path][0]) if stacked else (None,):
            parts = tuple(_part(name.format(**numbers), layer, leaves) for name in entry.paths)
            shape = list(_turned(parts[0].shape))
            if len(parts) > 1:
                shape[entry.axis] = sum(_turned(part.shape)[entry.axis] for part in parts)
            key = entry.key.format(**numbers | ({} if layer is None else {"layer": layer}))
            yield Tensor(key, (*shape, *(1,) * entry.ones), entry.axis, parts, entry.ones)


def _part(name: str, layer: int | None, leaves: Mapping[str, Shape]) -> Part:
    path, _, half = name.partition(":")
    if path not in leaves:
        raise ValueError(f"the table needs {path}, which the model lacks")
    shape = leaves[path] if layer is None else leaves[path][1:]
    slices: tuple[Any, ...] = () if layer is None else (layer,)
    if half:
        middle = shape[-1] // 2
        slices = (..., slice(int(half) * middle, (int(half) + 1) * middle))
        shape = (*shape[:-1], middle)
    return Part(path, slices, shape)


def _turned(shape: Shape) -> Shape:
    return tuple(shape[axis] for axis in _TO_TORCH[len(shape)])


_PROJECTIONS = ("q", "k", "v", "gate", "up")
_SINGLE_IN = tuple(f"single/joint/{name}/kernel" for name in _PROJECTIONS)
_SINGLE_OUT = ("single/joint/out/kernel", "single/joint/down/kernel")


def _qkv(stream: str) -> tuple[str, ...]:
    return tuple(f"double/{stream}/{name}/kernel" for name in "qkv")


def _gate_up(stream: str) -> tuple[str, ...]:
    return tuple(f"double/{stream}/{name}/kernel" for name in ("gate", "up"))


# diffusers' `Flux2Transformer2DModel`.
TRANSFORMER = (
    row("time_guidance_embed.timestep_embedder.linear_1.weight", "time_in/kernel"),
    row("time_guidance_embed.timestep_embedder.linear_2.weight", "time_out/kernel"),
    row("time_guidance_embed.guidance_embedder.linear_1.weight", "guidance_in/kernel"),
    row("time_guidance_embed.guidance_embedder.linear_2.weight", "guidance_out/kernel"),
    row("double_stream_modulation_img.linear.weight", "image_modulation/kernel"),
    row("double_stream_modulation_txt.linear.weight", "text_modulation/kernel"),
    row("single_stream_modulation.linear.weight", "single_modulation/kernel"),
    row("x_embedder.weight", "image_in/kernel"),
    row("context_embedder.weight", "text_in/kernel"),
    row("transformer_blocks.{layer}.attn.to_q.weight", "double/image/q/kernel"),
    row("transformer_blocks.{layer}.attn.to_k.weight", "double/image/k/kernel"),
    row("transformer_blocks.{layer}.attn.to_v.weight", "double/image/v/kernel"),
    row("transformer_blocks.{layer}.attn.norm_q.weight", "double/image/q_norm/scale"),
    row("transformer_blocks.{layer}.attn.norm_k.weight", "double/image/k_norm/scale"),
    row("transformer_blocks.{layer}.attn.to_out.0.weight", "double/image/out/kernel"),
    row("transformer_blocks.{layer}.attn.add_q_proj.weight", "double/text/q/kernel"),
    row("transformer_blocks.{layer}.attn.add_k_proj.weight", "double/text/k/kernel"),
    row("transformer_blocks.{layer}.attn.add_v_proj.weight", "double/text/v/kernel"),
    row("transformer_blocks.{layer}.attn.norm_added_q.weight", "double/text/q_norm/scale"),
    row("transformer_blocks.{layer}.attn.norm_added_k.weight", "double/text/k_norm/scale"),
    row("transformer_blocks.{layer}.attn.to_add_out.weight", "double/text/out/kernel"),
    row("transformer_blocks.{layer}.ff.linear_in.weight", *_gate_up("image")),
    row("transformer_blocks.{layer}.ff.linear_out.weight", "double/image/down/kernel"),
    row("transformer_blocks.{layer}.ff_context.linear_in.weight", *_gate_up("text")),
    row("transformer_blocks.{layer}.ff_context.linear_out.weight", "double/text/down/kernel"),
    row("single_transformer_blocks.{layer}.attn.to_qkv_mlp_proj.weight", *_SINGLE_IN),
    row("single_transformer_blocks.{layer}.attn.norm_q.weight", "single/joint/q_norm/scale"),
    row("single_transformer_blocks.{layer}.attn.norm_k.weight", "single/joint/k_norm/scale"),
    row("single_transformer_blocks.{layer}.attn.to_out.weight", *_SINGLE_OUT, axis=1),
    row("norm_out.linear.weight", "out_modulation/kernel"),
    row("proj_out.weight", "image_out/kernel"),
)

# Black Forest Labs' own single file, which ComfyUI reads: q, k, v fused everywhere, the last modulation as shift, scale.
TRANSFORMER_BFL = (
    row("time_in.in_layer.weight", "time_in/kernel"),
    row("time_in.out_layer.weight", "time_out/kernel"),
    row("guidance_in.in_layer.weight", "guidance_in/kernel"),
    row("guidance_in.out_layer.weight", "guidance_out/kernel"),
    row("double_stream_modulation_img.lin.weight", "image_modulation/kernel"),
    row("double_stream_modulation_txt.lin.weight", "text_modulation/kernel"),
    row("single_stream_modulation.lin.weight", "single_modulation/kernel"),
    row("img_in.weight", "image_in/kernel"),
    row("txt_in.weight", "text_in/kernel"),
    *(
        line
        for short, stream in (("img", "image"), ("txt", "text"))
        for line in (
            row(f"double_blocks.{{layer}}.{short}_attn.qkv.weight", *_qkv(stream)),
            row(f"double_blocks.{{layer}}.{short}_attn.norm.query_norm.scale", f"double/{stream}/q_norm/scale"),
            row(f"double_blocks.{{layer}}.{short}_attn.norm.key_norm.scale", f"double/{stream}/k_norm/scale"),
            row(f"double_blocks.{{layer}}.{short}_attn.proj.weight", f"double/{stream}/out/kernel"),
            row(f"double_blocks.{{layer}}.{short}_mlp.0.weight", *_gate_up(stream)),
            row(f"double_blocks.{{layer}}.{short}_mlp.2.weight", f"double/{stream}/down/kernel"),
        )
    ),
    row("single_blocks.{layer}.linear1.weight", *_SINGLE_IN),
    row("single_blocks.{layer}.norm.query_norm.scale", "single/joint/q_norm/scale"),
    row("single_blocks.{layer}.norm.key_norm.scale", "single/joint/k_norm/scale"),
    row("single_blocks.{layer}.linear2.weight", *_SINGLE_OUT, axis=1),
    row("final_layer.adaLN_modulation.1.weight", "out_modulation/kernel:1", "out_modulation/kernel:0"),
    row("final_layer.linear.weight", "image_out/kernel"),
)


def _affine(key: str, path: str, weight: str = "kernel", ones: int = 0) -> tuple[Row, Row]:
    return row(f"{key}.weight", f"{path}/{weight}", ones=ones), row(f"{key}.bias", f"{path}/bias")


def _resnet(key: str, path: str, shortcut: str = "conv_shortcut") -> tuple[Row, ...]:
    norms = (line for n in "12" for line in _affine(f"{key}.norm{n}", f"{path}/norm{n}", "scale"))
    convolutions = (line for n in "12" for line in _affine(f"{key}.conv{n}", f"{path}/conv{n}"))
    return (*norms, *convolutions, *_affine(f"{key}.{shortcut}", f"{path}/shortcut"))


def _half(side: str, levels: str, resize: str) -> tuple[Row, ...]:
    """The encoder's or the decoder's rows."""
    attention = f"{side}.mid_block.attentions.0"
    return (
        *_affine(f"{side}.conv_in", f"{side}/conv_in"),
        *_resnet(f"{side}.{levels}.{{a}}.resnets.{{b}}", f"{side}/level_{{a}}/resnet_{{b}}"),
        *_affine(f"{side}.{levels}.{{a}}.{resize}.0.conv", f"{side}/level_{{a}}/resize"),
        *_resnet(f"{side}.mid_block.resnets.{{b}}", f"{side}/middle/resnet_{{b}}"),
        *_affine(f"{attention}.group_norm", f"{side}/middle/attention/norm", "scale"),
        *(line for n in "qkv" for line in _affine(f"{attention}.to_{n}", f"{side}/middle/attention/{n}")),
        *_affine(f"{attention}.to_out.0", f"{side}/middle/attention/out"),
        *_affine(f"{side}.conv_norm_out", f"{side}/norm_out", "scale"),
        *_affine(f"{side}.conv_out", f"{side}/conv_out"),
    )


def _half_bfl(side: str, numbers: Iterable[int]) -> tuple[Row, ...]:
    """The same in Black Forest Labs' names; `numbers` are theirs of our levels."""
    levels, resize = ("down", "downsample") if side == "encoder" else ("up", "upsample")
    attention, shortcut = f"{side}.mid.attn_1", "nin_shortcut"
    return (
        *_affine(f"{side}.conv_in", f"{side}/conv_in"),
        *(
            line
            for level, number in enumerate(numbers)
            for line in (
                *_resnet(f"{side}.{levels}.{number}.block.{{b}}", f"{side}/level_{level}/resnet_{{b}}", shortcut),
                *_affine(f"{side}.{levels}.{number}.{resize}.conv", f"{side}/level_{level}/resize"),
            )
        ),
        *(line for b in (0, 1) for line in _resnet(f"{side}.mid.block_{b + 1}", f"{side}/middle/resnet_{b}", shortcut)),
        *_affine(f"{attention}.norm", f"{side}/middle/attention/norm", "scale"),
        *(line for n in "qkv" for line in _affine(f"{attention}.{n}", f"{side}/middle/attention/{n}", ones=2)),
        *_affine(f"{attention}.proj_out", f"{side}/middle/attention/out", ones=2),
        *_affine(f"{side}.norm_out", f"{side}/norm_out", "scale"),
        *_affine(f"{side}.conv_out", f"{side}/conv_out"),
    )


_STATISTICS = (
    row("bn.running_mean", "statistics/mean"),
    row("bn.running_var", "statistics/variance"),
    row("bn.num_batches_tracked", "statistics/batches"),
)

# diffusers' `AutoencoderKLFlux2`.
VAE = (
    *_half("encoder", "down_blocks", "downsamplers"),
    *_half("decoder", "up_blocks", "upsamplers"),
    *_affine("quant_conv", "quant"),
    *_affine("post_quant_conv", "post_quant"),
    *_STATISTICS,
)


def vae_bfl(levels: int) -> tuple[Row, ...]:
    """Black Forest Labs' own `ae.safetensors`: the decoder counts its levels from the image inwards, we from the latents."""
    return (
        *_half_bfl("encoder", range(levels)),
        *_half_bfl("decoder", reversed(range(levels))),
        *_affine("encoder.quant_conv", "quant"),
        *_affine("decoder.post_quant_conv", "post_quant"),
        *_STATISTICS,
    )
