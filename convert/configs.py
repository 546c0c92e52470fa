"""Configs of diffusers' classes as ours and back, and the config of a transformer that came without one."""

import dataclasses
import json
import math
import pathlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from uniser_jax.models.presets import DiTConfig
from uniser_jax.models.vae import VAEConfig

T = TypeVar("T", DiTConfig, VAEConfig)

TRANSFORMER_CLASS = "Flux2Transformer2DModel"
VAE_CLASS = "AutoencoderKLFlux2"


def read(path: pathlib.Path) -> dict[str, Any]:
    """A JSON table.

    Raises:
      ValueError: if the file is missing or is none.
    """
    try:
        table = json.loads(path.read_bytes())
    except OSError:
        raise ValueError(f"{path} is missing or cannot be read") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path} is not a table")
    return table


def transformer(table: Mapping[str, Any]) -> DiTConfig:
    """A `Flux2Transformer2DModel` config as ours.

    Raises:
      ValueError: for a key or a value that ours does not know.
    """
    return _build(DiTConfig, table)


def vae(table: Mapping[str, Any]) -> VAEConfig:
    """An `AutoencoderKLFlux2` config as ours.

    Raises:
      ValueError: for a key or a value that ours does not know.
    """
    blocks = table.get("block_out_channels", VAEConfig().block_out_channels)
    if not isinstance(blocks, list | tuple):
        raise ValueError(f"VAE config block_out_channels = {blocks!r}: expected a list")
    fixed = _vae_fixed(len(blocks))
    for key, value in fixed.items():
        if table.get(key, value) != value and key not in _IRRELEVANT:
            raise ValueError(f"VAE config {key} = {table[key]!r}: only {value!r} is supported")
    return _build(VAEConfig, {key: value for key, value in table.items() if key not in (*fixed, *_IRRELEVANT)})


def to_diffusers(config: DiTConfig | VAEConfig) -> dict[str, Any]:
    """The config.json of diffusers' class."""
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(config).items()}
    if isinstance(config, DiTConfig):
        return {"_class_name": TRANSFORMER_CLASS, **values}
    return {"_class_name": VAE_CLASS, **values, **_vae_fixed(len(config.block_out_channels))}


def infer_transformer(shapes: Mapping[str, tuple[int, ...]]) -> DiTConfig:
    """The config of a Black Forest Labs single file, which has none; rotary axes and theta are those of all FLUX.2 models.

    Raises:
      ValueError: if the tensors are not those of such a file.
    """
    try:
        width, channels = shapes["img_in.weight"]
        (head_dim,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
        axis = 2 * (head_dim // 8)
        return DiTConfig(
            in_channels=channels,
            out_channels=shapes["final_layer.linear.weight"][0],
            num_layers=_layers(shapes, "double_blocks"),
            num_single_layers=_layers(shapes, "single_blocks"),
            attention_head_dim=head_dim,
            num_attention_heads=width // head_dim,
            joint_attention_dim=shapes["txt_in.weight"][1],
            timestep_guidance_channels=shapes["time_in.in_layer.weight"][1],
            mlp_ratio=shapes["double_blocks.0.img_mlp.2.weight"][1] / width,
            axes_dims_rope=(axis,) * 4,
            guidance_embeds="guidance_in.in_layer.weight" in shapes,
        )
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"not the tensors of a FLUX.2 single file: {error}") from None


def infer_vae(shapes: Mapping[str, tuple[int, ...]]) -> VAEConfig:
    """The config of an autoencoder in Black Forest Labs' layout, which has none; group norms of 32 groups, as theirs all are.

    Raises:
      ValueError: if the tensors are not those of such a file.
    """
    try:
        levels = range(len({key.split(".")[2] for key in shapes if key.startswith("encoder.down.")}))
        encoder, decoder = (
            tuple(shapes[f"{side}.{n}.block.0.conv1.weight"][0] for n in levels)
            for side in ("encoder.down", "decoder.up")
        )
        latents = shapes["encoder.conv_out.weight"][0] // 2
        patch = math.isqrt(shapes["bn.running_mean"][0] // latents)
        return VAEConfig(
            in_channels=shapes["encoder.conv_in.weight"][1],
            out_channels=shapes["decoder.conv_out.weight"][0],
            block_out_channels=encoder,
            decoder_block_out_channels=None if decoder == encoder else decoder,
            layers_per_block=len({key.split(".")[4] for key in shapes if key.startswith("encoder.down.0.block.")}),
            latent_channels=latents,
            use_quant_conv="encoder.quant_conv.weight" in shapes,
            use_post_quant_conv="decoder.post_quant_conv.weight" in shapes,
            mid_block_add_attention="encoder.mid.attn_1.q.weight" in shapes,
            patch_size=(patch, patch),
        )
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"not the tensors of a FLUX.2 autoencoder: {error}") from None


_IRRELEVANT = ("sample_size", "batch_norm_momentum", "force_upcast")  # they do not change what a trained model computes


def _vae_fixed(levels: int) -> dict[str, Any]:
    """What our autoencoder has no choice of."""
    return {
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "sample_size": 1024,
        "batch_norm_momentum": 0.1,
    }


def _build(kind: type[T], table: Mapping[str, Any]) -> T:
    fields = typing.get_type_hints(kind)
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in table.items() if not key.startswith("_")}
    unknown = sorted(values.keys() - fields.keys())
    if unknown:
        raise ValueError(f"config key {unknown[0]!r} is unknown; known: {', '.join(sorted(fields))}")
    for key, value in values.items():
        if not _fits(value, fields[key]):
            raise ValueError(
                f"config key {key!r} is {str(value)[:40]!r}: expected {getattr(fields[key], '__name__', fields[key])}"
            )
    make: Any = kind
    try:
        return make(**values)
    except TypeError as error:
        raise ValueError(f"config: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; numbers are finite, also as floats."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(part, typing.get_args(hint)[0]) for part in value)
    if hint in (int, float):
        kinds = (int, float) if hint is float else int
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def _layers(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    return len({key.split(".")[1] for key in shapes if key.startswith(f"{prefix}.")})
