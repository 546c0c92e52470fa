"""Named sizes of the transformer. Field names are those of diffusers' `Flux2Transformer2DModel` config."""

import dataclasses

from uniser_jax.errors import check_range

_LARGEST = 10**6  # of sizes
_SIZES = (
    "in_channels",
    "num_layers",
    "num_single_layers",
    "attention_head_dim",
    "num_attention_heads",
    "joint_attention_dim",
    "timestep_guidance_channels",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """The shape of a transformer.

    Raises:
      ValueError: one line, if a value is out of range, or the rotary axes do not fill a head.
    """

    in_channels: int = 128
    out_channels: int | None = None  # None: as many as in_channels
    num_layers: int  # double-stream blocks
    num_single_layers: int
    attention_head_dim: int = 128
    num_attention_heads: int
    joint_attention_dim: int  # width of a context (text) token
    timestep_guidance_channels: int = 256
    mlp_ratio: float = 3.0
    axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32)  # rotary dimensions for T, H, W, L
    rope_theta: float = 2000.0
    eps: float = 1e-6
    guidance_embeds: bool = False
    patch_size: int = 1

    def __post_init__(self) -> None:
        for name in _SIZES:
            check_range(name, getattr(self, name), 1, _LARGEST)
        check_range("out_channels", 1 if self.out_channels is None else self.out_channels, 1, _LARGEST)
        check_range("mlp_ratio", self.mlp_ratio, 2 / self.width, 1000)
        check_range("rope_theta", self.rope_theta, 1, 1e12)
        check_range("eps", self.eps, 1e-30, 1)
        check_range("patch_size", self.patch_size, 1, 1)  # tokens are made outside
        axes = self.axes_dims_rope
        if sum(axes) != self.attention_head_dim or any(d % 2 or d < 2 for d in axes):
            raise ValueError(
                f"axes_dims_rope = {str(axes)[:60]}: expected positive even numbers that sum to"
                f" attention_head_dim = {self.attention_head_dim}"
            )

    @property
    def width(self) -> int:
        """Features of a token, d."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_width(self) -> int:
        """Features inside the MLP."""
        return int(self.width * self.mlp_ratio)

    def parameter_count(self) -> int:
        """The number of parameters, in closed form."""
        d, m, h = self.width, self.mlp_width, self.attention_head_dim
        double = 2 * (4 * d * d + 3 * d * m + 2 * h)  # two streams: q k v out, gate up down, two norms
        single = 4 * d * d + 3 * d * m + 2 * h
        time = (self.timestep_guidance_channels * d + d * d) * (2 if self.guidance_embeds else 1)
        modulation = (6 + 6 + 3 + 2) * d * d
        ends = (self.in_channels + self.joint_attention_dim + (self.out_channels or self.in_channels)) * d
        return self.num_layers * double + self.num_single_layers * single + time + modulation + ends


_BASE = DiTConfig(num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680)

PRESETS = {
    "tiny": DiTConfig(
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=64,
        axes_dims_rope=(8, 8, 8, 8),
    ),
    "s": DiTConfig(
        num_layers=2,
        num_single_layers=8,
        attention_head_dim=64,
        num_attention_heads=8,
        joint_attention_dim=1024,
        axes_dims_rope=(16, 16, 16, 16),
    ),
    "b": DiTConfig(num_layers=3, num_single_layers=12, num_attention_heads=6, joint_attention_dim=2048),
    "l": DiTConfig(num_layers=4, num_single_layers=16, num_attention_heads=9, joint_attention_dim=2048),
    "xl": DiTConfig(num_layers=4, num_single_layers=16, num_attention_heads=16, joint_attention_dim=4096),
    "klein-4b": _BASE,
    "klein-9b": dataclasses.replace(
        _BASE, num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=12288
    ),
}


def preset(name: str) -> DiTConfig:
    """The config of a named size.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"model preset {name!r} is unknown; known: {', '.join(PRESETS)}")
    return PRESETS[name]
