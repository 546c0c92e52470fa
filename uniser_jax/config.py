"""The schema of an experiment: every key, its default and its type stand here once; configs/ only set values.

A config is a locked `ml_collections.ConfigDict`. Sections that describe a frozen dataclass (`edit`, `flow`, `lora`) are made
from that dataclass, so their keys, defaults and checks have one home; `build` turns them back.
"""

import dataclasses
import difflib
import json
import math
import operator
import pathlib
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from uniser_jax import optim
from uniser_jax.checkpoint import ON_CORRUPT
from uniser_jax.data.buckets import Buckets, aspect
from uniser_jax.data.schedule import Schedule, Stage
from uniser_jax.diffusion.flow import Flow
from uniser_jax.effects.edit import EditSampling
from uniser_jax.errors import reason_of
from uniser_jax.models.attention import KERNELS
from uniser_jax.models.dit import REMAT
from uniser_jax.models.lora import Lora
from uniser_jax.models.presets import PRESETS

T = TypeVar("T")

_LARGEST_SIDE = 1 << 14  # of what a network sees at once
_MOST = 2**63  # of what jax makes keys and counts of
_AT_LEAST_ONE = (
    *("steps", "batch_size", "log_every", "model.patch", "model.prompt_length", "data.size", "optim.accumulate"),
    *("checkpoint.every", "checkpoint.keep", "evaluation.count", "restore.steps", "data.threads"),
)
_AT_LEAST_ZERO = (
    *("seed", "evaluation.seed", "sample_every", "stall_seconds", "checkpoint.keep_every", "checkpoint.best"),
    *("optim.warmup_steps", "optim.weight_decay", "optim.eps", "optim.max_skipped"),
    *("data.min_side", "data.workers", "restore.direct"),
)
_ABOVE_ZERO = ("optim.lr", "optim.clip_norm", "data.smallest", "restore.shift", "lora.alpha")
_AT_MOST_ONE = ("optim.final_lr", "data.colour", "data.smallest", "data.real", "model.drop_mask")
_ONE_OF = {
    "model.preset": PRESETS,
    "model.codec": ("pixels", "latents"),
    "model.conditioning": ("channels", "references"),
    "model.compute_dtype": ("bfloat16", "float16", "float32"),
    "model.attention": KERNELS,
    "model.remat": REMAT,
    "optim.name": optim.NAMES,
    "optim.moments": optim.MOMENTS,
    "checkpoint.on_corrupt": ON_CORRUPT,
}


def defaults() -> ConfigDict:
    """Returns all keys with defaults that suit training from scratch in pixel space on one host."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 100_000
    config.batch_size = 256  # global, over all processes
    config.log_every = 50
    config.init_from = ""  # another run, with whose averaged parameters this one starts; "" is none
    config.sample_every = 2_000  # a grid of held-out restorations as PNG; 0 is never
    config.profile_steps = ()  # first and last step to trace into WORKDIR/profile, as 100,105; () is none
    config.stall_seconds = 600.0  # without a step, after which a run logs what it hangs on; 0 is never

    # Sizes of the axes, docs/scale.md says how to choose them; -1: all remaining devices.
    config.mesh = ConfigDict({"slice": 1, "data": -1, "fsdp": 1, "sequence": 1, "tensor": 1})

    config.model = ConfigDict()
    config.model.preset = "s"  # a name in models.presets.PRESETS
    config.model.base = ""  # a folder made by convert.from_diffusers, to start from; "" starts from random parameters
    config.model.codec = "pixels"  # pixels | latents: those of the base's autoencoder
    config.model.patch = 16  # side of a token in pixels
    config.model.conditioning = "channels"  # channels | references: photograph and mask in each token, or as images
    config.model.mask_scale = 1  # by references: 1 | 2, the mask at half the side has a quarter of the tokens
    config.model.drop_mask = 0.0  # by references: share of white masks that are left out, so that none is needed
    config.model.prompt_length = 8  # tokens per task embedding
    config.model.compute_dtype = "bfloat16"  # parameters and optimizer stay float32
    config.model.attention = "auto"  # auto | xla | chunked | splash (TPU) | cudnn (NVIDIA) | ring: models.attention
    config.model.remat = "dots"  # none | dots | full | offload: from fast and large to slow and small

    config.lora = to_config(Lora())  # low-rank adapters of model.base: rank (0: all is trained), alpha, which kernels

    config.flow = to_config(Flow())  # prediction type, time sampling

    config.optim = ConfigDict()
    config.optim.name = "adamw"  # adamw | adafactor | muon
    config.optim.moments = "float32"  # float32 | bfloat16: how the optimizer's moments are stored
    config.optim.lr = 3e-4
    config.optim.warmup_steps = 1_000
    config.optim.final_lr = 0.01  # of the peak, at the end of a cosine decay
    config.optim.b1 = 0.9  # adamw, adafactor; muon refuses another: the momentum of its matrices is 0.95
    config.optim.b2 = 0.95  # adamw, muon; adafactor refuses another, whose rate follows the step
    config.optim.eps = 1e-8  # adamw, muon; adafactor refuses another, which has its own
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 1.0  # a large number never clips
    config.optim.accumulate = 1  # microbatches per step
    config.optim.ema = 0.999
    config.optim.max_skipped = 20  # updates in a row that are not finite before a run stops; 0 is never

    config.data = ConfigDict()
    config.data.photos = "samples"  # samples | DIR | tfds:NAME[:SPLIT[:KEY]] | array_record:GLOB
    config.data.pairs = ""  # a manifest of real pairs, to train on too, as of `uniser evaluate --pairs`; "" is none
    config.data.real = 0.2  # share of examples that are real pairs, where a manifest is given
    config.data.holdout = 0.1  # share of photographs never trained on
    config.data.min_side = 64  # smaller photographs are skipped
    config.data.size = 256  # side of a training crop in pixels; of crops of other aspects, of a square of the same area
    config.data.buckets = ()  # aspects of batches, width:height, as ("1:1", "3:2", "2:3"); () is squares only
    config.data.stages = ()  # ((first step, size, batch_size), ...); the last has data.size and batch_size; () is one
    config.data.reuse = 1  # crops of each rendered pair, one for each of so many steps in a row
    config.data.colour = 0.2  # how much exposure, white balance, hue and saturation of photographs vary, 0 to 1
    config.data.smallest = 0.35  # share of a photograph's largest crop that an example shows, at least; 1: uncropped
    config.data.workers = 0  # processes; 0 renders in threads
    config.data.threads = 2

    config.edit = to_config(EditSampling())  # which effects, tasks, masks and strengths

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1_000
    config.checkpoint.keep = 3  # of the newest
    config.checkpoint.keep_every = 0  # steps whose multiples stay for ever, a multiple of every; 0 is none
    config.checkpoint.best = 1  # of the lowest held-out loss, which is measured with every checkpoint; 0 is none
    config.checkpoint.on_corrupt = "stop"  # stop | previous: what to do with a damaged newest checkpoint

    config.evaluation = ConfigDict()
    config.evaluation.count = 16  # held-out edits per effect
    config.evaluation.seed = 1_000_003

    config.restore = ConfigDict()
    config.restore.steps = 1  # Euler steps
    config.restore.shift = 1.0  # k of diffusion.sampler: above 1, more of the steps lie near noise
    config.restore.compensate = True  # through latents: what the autoencoder loses of the photograph is put back
    config.restore.working_size = 0  # the network's side in pixels for photographs of any size; 0: data.size
    config.restore.direct = 1.25  # times working_size: up to here pixels come from the network, above by affine maps
    return config.lock()


def read(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads `configs/name.py` or `configs/name.py:key=value,...` and applies overrides.

    Args:
      path: a Python file with `get_config(argument=None)`.
      overrides: as on the command line, `--config.optim.lr=3e-4`.

    Raises:
      ValueError: for a missing file, an unknown key or a value of the wrong type.
    """
    file = path.partition(":")[0]
    if not pathlib.Path(file).is_file():
        raise ValueError(f"no config file {file!r}; see configs/")
    argv = ["uniser", f"--config={path}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)[1:]
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}; overrides look like --config.optim.lr=3e-4")
        config = values.config
    except (AttributeError, KeyError) as error:
        raise ValueError(_unknown_key(path, overrides) or f"{path}: {_last_line(error)}") from None
    except (flags.Error, TypeError, ValueError) as error:
        raise ValueError(_last_line(error).removeprefix("ValueError: ")) from None
    validate(config)
    return config


def _unknown_key(path: str, overrides: Sequence[str]) -> str:
    """Which override names a key that the config lacks, in one line; empty if all have theirs or the file itself fails."""
    for name in re.findall(r"^--?(?:no)?config\.([\w.]+)", "\n".join(overrides), re.MULTILINE):
        section = read(path)
        for key in name.split("."):
            known = list(section) if isinstance(section, ConfigDict) else []
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                return f"config.{name} is unknown" + (f"; did you mean {close[0]!r}?" if close else "")
            section = section[key]
    return ""


def _last_line(error: Exception) -> str:
    """Of a message, which for an error in a config file is a whole traceback."""
    return str(error.args[0] if error.args else error).strip().splitlines()[-1]


def parse_argument(argument: str | None, **known: Any) -> ConfigDict:
    """Parses the part after the colon of `--config=configs/pixel.py:size=b,image=512`.

    Args:
      argument: comma-separated `key=value`, or None.
      **known: the keys with their defaults, which fix the types (bool, int, float or str).

    Returns:
      A locked ConfigDict of `known` with the given values.

    Raises:
      ValueError: for an unknown key or a value that does not parse.
    """
    values = dict(known)
    for item in filter(None, (argument or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in known:
            raise ValueError(f"config argument {key!r} is unknown; known: {', '.join(known)}")
        kind = type(known[key])
        if kind is bool:
            if equals and text.lower() not in ("true", "false", "1", "0"):
                raise ValueError(f"config argument {item!r}: expected true or false")
            values[key] = text.lower() not in ("false", "0")  # a bare key switches on
            continue
        try:
            values[key] = kind(text)
        except ValueError:
            raise ValueError(f"config argument {item!r}: expected {kind.__name__}") from None
    return ConfigDict(values).lock()


def to_config(record: Any) -> ConfigDict:
    """Turns a (nested) dataclass into a ConfigDict with the same keys."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return ConfigDict({key: to_config(v) if dataclasses.is_dataclass(v) else v for key, v in fields.items()})


def build(kind: type[T], config: ConfigDict) -> T:
    """Builds the dataclass `kind` from the section made by `to_config`; its own checks raise ValueError."""
    hints = typing.get_type_hints(kind)
    values = {}
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            value = build(hints[key], value) if dataclasses.is_dataclass(hints[key]) else value.to_dict()
        values[key] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def validate(config: ConfigDict) -> None:
    """Checks what must hold before anything is compiled, as far as it can be known without devices and photographs.

    Raises:
      ValueError: one line with the value, what was expected and the fix.
    """
    for path in _AT_LEAST_ONE:
        if not 1 <= (value := _at(config, path)) < _MOST:
            raise ValueError(f"config.{path} = {value}: expected at least 1 and below 2^63")
    for path in _AT_LEAST_ZERO:
        if not 0 <= (value := _at(config, path)) < _MOST:
            raise ValueError(f"config.{path} = {value}: expected at least 0 and below 2^63")
    for path in _AT_MOST_ONE:
        if not 0 <= (value := _at(config, path)) <= 1:
            raise ValueError(f"config.{path} = {value}: expected in [0, 1]")
    for path, known in _ONE_OF.items():
        if (value := _at(config, path)) not in known:
            raise ValueError(f"config.{path} = {value!r}: expected one of {', '.join(known)}")
    for path in _ABOVE_ZERO:
        if not 0 < (value := _at(config, path)) < math.inf:
            raise ValueError(f"config.{path} = {value}: expected above 0 and finite")
    _check_mesh(config.mesh)
    if not 0 <= (side := config.restore.working_size) <= _LARGEST_SIDE:
        raise ValueError(f"config.restore.working_size = {side}: expected at most {_LARGEST_SIDE}, or 0 for data.size")
    build(Flow, config.flow)
    build(EditSampling, config.edit)
    scale = config.model.mask_scale
    if scale not in (1, 2) or (scale > 1 and config.model.conditioning != "references"):
        raise ValueError(
            f"config.model.mask_scale = {scale}: expected 1, or 2 by config.model.conditioning = 'references'"
        )
    if config.data.size % config.model.patch:
        raise ValueError(
            f"config.data.size = {config.data.size} is not a multiple of config.model.patch = {config.model.patch}"
        )
    if config.batch_size % config.optim.accumulate:
        raise ValueError(
            f"config.batch_size = {config.batch_size} is not a multiple of "
            f"config.optim.accumulate = {config.optim.accumulate}"
        )
    if config.checkpoint.keep_every % config.checkpoint.every:
        raise ValueError(
            f"config.checkpoint.keep_every = {config.checkpoint.keep_every} is not a multiple of "
            f"config.checkpoint.every = {config.checkpoint.every}: what is not saved cannot stay"
        )
    for stage in schedule(config).stages:
        if stage.size % multiple(config) or stage.batch_size % config.optim.accumulate:
            raise ValueError(
                f"config.data.stages: {tuple(stage)} is (first step, size, batch_size): expected a size in multiples of"
                f" {multiple(config)} and a batch in multiples of config.optim.accumulate = {config.optim.accumulate}"
            )
    aspects(config)
    if config.model.drop_mask and config.model.conditioning != "references":
        raise ValueError(
            "config.model.drop_mask: a channel is always there; use config.model.conditioning = 'references'"
        )
    if config.model.codec == "latents" and not (config.model.base and config.model.conditioning == "references"):
        raise ValueError(
            "config.model.codec = 'latents' needs config.model.base and config.model.conditioning = 'references'"
        )
    first_last = config.profile_steps
    whole = all(isinstance(step, int) for step in first_last)
    if first_last and not (whole and len(first_last) == 2 and 1 <= first_last[0] <= first_last[1]):
        raise ValueError(f"config.profile_steps = {first_last}: expected a first and a last step, as in 100,105")
    if build(Lora, config.lora).rank and not config.model.base:
        raise ValueError(f"config.lora.rank = {config.lora.rank} adapts a base: name it, config.model.base")
    for name, why in optim.IGNORED.get(config.optim.name, {}).items():
        if (value := config.optim[name]) != (usual := defaults().optim[name]):
            raise ValueError(
                f"config.optim.{name} = {value}: {config.optim.name} ignores it, {why}; leave it at {usual}"
            )
    for name in ("b1", "b2", "ema"):
        if not 0 <= (value := config.optim[name]) < 1:
            raise ValueError(f"config.optim.{name} = {value}: expected in [0, 1)")
    if not 0 < config.data.holdout < 1:
        raise ValueError(f"config.data.holdout = {config.data.holdout}: expected strictly between 0 and 1")


def _check_mesh(mesh: ConfigDict) -> None:
    for axis, size in mesh.items():
        if size < 1 and size != -1:
            raise ValueError(f"config.mesh.{axis} = {size}: expected at least 1, or -1 for all remaining devices")
    rest = [axis for axis, size in mesh.items() if size == -1]
    if len(rest) > 1:
        raise ValueError(f"config.mesh: {' and '.join(rest)} are -1: expected one axis for all remaining devices")


def schedule(config: ConfigDict) -> Schedule:
    """Sizes and batches by step.

    Raises:
      ValueError: if `config.data.stages` or `config.data.reuse` make none, or end with another size than the run's.
    """
    last = config.data.size, config.batch_size
    try:
        stages = [Stage(*map(operator.index, stage)) for stage in config.data.stages or ((0, *last),)]
        made = Schedule(tuple(stages), config.data.reuse)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.data.stages = {config.data.stages}, reuse = {config.data.reuse}: {error}") from None
    if stages[-1][1:] != last:
        raise ValueError(
            f"config.data.stages ends with (size, batch) = {stages[-1][1:]}: expected {last}, config.data.size and"
            " config.batch_size, which the trained model is known by"
        )
    return made


def batch_shapes(config: ConfigDict) -> list[tuple[int, int, int]]:
    """(examples, h, w) of all global batches of a run."""
    return [(stage.batch_size, *sides) for stage in schedule(config).stages for sides in shapes(config, stage.size)]


def shapes(config: ConfigDict, size: int) -> list[tuple[int, int]]:
    """(h, w) in pixels of all batches of a stage with `size`."""
    if not config.data.buckets:
        return [(size, size)]
    buckets = Buckets(aspects(config), ((),) * len(config.data.buckets), multiple(config))
    return [buckets.shape(bucket, size) for bucket in range(len(config.data.buckets))]


def aspects(config: ConfigDict) -> tuple[float, ...]:
    """Width over height of each bucket.

    Raises:
      ValueError: if one is no aspect.
    """
    return tuple(map(aspect, config.data.buckets))


def multiple(config: ConfigDict) -> int:
    """Of which the sides of training images are multiples: a token, also of a smaller mask, and a latent of 16 pixels."""
    token = math.lcm(config.model.patch, 16) if config.model.codec == "latents" else config.model.patch
    return token * config.model.mask_scale


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Nested sections to `section.key`; lists, which JSON makes of tuples, to tuples."""
    return {key: _tuple(value) for key, value in flatten_dict(values, sep=".").items()}


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """The config that was saved with a run, flat; a key that was added since has its default."""
    return flat(defaults().to_dict()) | flat(values)


def to_json(config: ConfigDict) -> str:
    """Serialises for the run folder; `from_json` gives an equal config."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """Reads a config saved with a run and fills keys that were added since with their defaults.

    Raises:
      ValueError: if the text has a key or a type that the schema does not know.
    """
    config = defaults()
    try:
        _update(config, json.loads(text))
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"the saved config does not fit this version: {reason_of(error)}") from None
    return config


def _update(config: ConfigDict, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(config[key], ConfigDict):
            _update(config[key], value)
        else:
            config[key] = _tuple(value)


def _tuple(value: Any) -> Any:
    """Of what JSON makes lists of."""
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value


def _at(config: ConfigDict, path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config
