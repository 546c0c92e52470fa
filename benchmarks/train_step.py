"""One training step of the same transformer, in JAX here and in PyTorch, side by side in one run.

    python -m benchmarks.train_step [--json PATH] [--tokens 256,1024] [--dtypes float32,bfloat16] [--quick]

The peer is diffusers' `Flux2Transformer2DModel` (attention by `scaled_dot_product_attention`), eager and through
`torch.compile`, with our weights carried over by the exporter's table. A step is forward, backward, clipping by the global
norm, and AdamW (fused in torch), parameters and moments in float32; bfloat16 is `compute_dtype` here and autocast there. Before
anything is timed, predictions, loss and gradient norm must agree. Contenders take turns, so that a busy machine slows all of
them; a ratio is the median over turns of our time by theirs, by the clock and by processor time: below 1 we are faster.
Both use the processors that this process may run on (`taskset -c 0,1` makes it two). `of peak` is the part of a measured
matrix product rate of the same dtype that a step reaches; the JSON has memory too.
"""

import argparse
import ctypes
import dataclasses
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from convert import mapping
from uniser_jax import atomic, flops, optim, xla
from uniser_jax import config as schema
from uniser_jax.models.codec import PixelCodec
from uniser_jax.models.dit import DiT
from uniser_jax.models.presets import PRESETS, DiTConfig, preset
from uniser_jax.models.prompts import text_ids

SIZE = DiTConfig(  # 12 blocks of width 384: 33 M parameters
    in_channels=768,
    num_layers=3,
    num_single_layers=9,
    attention_head_dim=64,
    num_attention_heads=6,
    joint_attention_dim=1024,
    axes_dims_rope=(16, 16, 16, 16),
)
CONTEXT = 8  # tokens
_TOKENS_PER_BATCH = 2048
_AGREE = {"float32": 1e-4, "bfloat16": 3e-2}  # relative to the size of predictions, loss and gradient


class Case(NamedTuple):
    """What is timed: a model, a precision, and one batch of random data."""

    config: DiTConfig
    dtype: str
    tokens: np.ndarray  # [b n i]
    context: np.ndarray  # [b l j]
    t: np.ndarray  # [b]
    target: np.ndarray  # [b n o]
    ids: np.ndarray  # [n 4]


class Contender(NamedTuple):
    """Two calls that return when their result is there, and what else is known."""

    forward: Callable[[], np.ndarray]
    step: Callable[[], tuple[float, float]]  # loss, gradient norm before the update
    facts: dict[str, float]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--tokens", type=_list, default=["256", "1024"], help="image tokens, squares: 256 is 16 x 16")
    parser.add_argument("--dtypes", type=_list, default=["float32", "bfloat16"])
    parser.add_argument("--preset", choices=PRESETS, help="a preset's size, instead of 33 M parameters")
    parser.add_argument("--batch", type=int, help=f"examples; default: {_TOKENS_PER_BATCH} / tokens")
    parser.add_argument("--remat", default="dots", help="our policy, see models.dit")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="5 turns, without torch.compile")
    arguments = parser.parse_args()
    xla.prepare()
    keep_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if jax.default_backend() == "gpu":  # the same products for both
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")
        torch.set_float32_matmul_precision("high")
    config = preset(arguments.preset) if arguments.preset else SIZE
    results: dict[str, Any] = {"machine": machine(), "parameters": config.parameter_count(), "cases": []}
    sys.stdout.write(f"{results['machine']}\n{config.parameter_count() / 1e6:.1f} M parameters\n")
    for tokens in map(int, arguments.tokens):
        for dtype in arguments.dtypes:
            case = make_case(config, dtype, tokens, arguments.batch or max(_TOKENS_PER_BATCH // tokens, 1))
            turns = 5 if arguments.quick else arguments.turns
            results["cases"].append(measure(case, arguments.remat, turns, compiled=not arguments.quick))
            sys.stdout.write(to_text(results["cases"][-1]))
            sys.stdout.flush()
    if arguments.json:
        atomic.write(arguments.json, json.dumps(results, indent=2) + "\n")


def measure(case: Case, remat: str, turns: int, compiled: bool) -> dict[str, Any]:
    """Seconds of every contender and our ratios to the others, for one case."""
    params = random_params(case.config)
    contenders = {"jax": ours(case, params, remat), "torch eager": theirs(case, params, compiled=False)}
    if compiled:
        contenders["torch.compile"] = theirs(case, params, compiled=True)
    check_agreement(case.dtype, contenders)
    rate = matmul_rate(case.dtype)
    work = forward_flops(case)
    result: dict[str, Any] = {"dtype": case.dtype, "tokens": case.tokens.shape[1], "batch": len(case.tokens)}
    result |= {"forward_flop": work, "step_flop": 3 * work, "matmul_flop_per_s": rate, "seconds": {}, "ratios": {}}
    result["facts"] = {name: contender.facts for name, contender in contenders.items()}
    for what, factor in (("forward", 1), ("step", 3)):
        wall, cpu = take_turns({name: getattr(contender, what) for name, contender in contenders.items()}, turns)
        for name in contenders:
            seconds = {"median": statistics.median(wall[name]), "min": min(wall[name])}
            seconds |= {"cpu": statistics.median(cpu[name]), "mfu": factor * work / min(wall[name]) / rate}
            result["seconds"].setdefault(name, {})[what] = seconds
            if name != "jax":
                ratio = {"wall": _ratio(wall["jax"], wall[name]), "cpu": _ratio(cpu["jax"], cpu[name])}
                result["ratios"].setdefault(name, {})[what] = ratio
    return result


def make_case(config: DiTConfig, dtype: str, count: int, batch: int) -> Case:
    """Random data of order one; `count` tokens in a square."""
    rng = np.random.default_rng(0)
    side = round(count**0.5)
    if side**2 != count:
        raise SystemExit(f"--tokens {count}: expected a square number, as 256 = 16 x 16")
    shapes = (
        (batch, count, config.in_channels),
        (batch, CONTEXT, config.joint_attention_dim),
        (batch, count, config.out_channels or config.in_channels),
    )
    tokens, context, target = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    t = np.linspace(0.1, 1.0, batch, dtype=np.float32)
    return Case(config, dtype, tokens, context, t, target, PixelCodec(1).ids(side, side))


def random_params(config: DiTConfig) -> Any:
    """Initial parameters, with the last projection drawn too: it starts at zero, and would hide all others."""
    params = nnx.to_pure_dict(nnx.state(jax.jit(lambda: DiT(config, rngs=nnx.Rngs(0)))()))
    kernel = params["image_out"]["kernel"]
    params["image_out"]["kernel"] = jax.random.normal(jax.random.key(0), kernel.shape) * kernel.shape[0] ** -0.5
    return jax.device_get(params)


def predict(graphdef: nnx.GraphDef, case: Case, params: Any, tokens: Any, context: Any, t: Any) -> Any:
    """Our model's answer."""
    return nnx.merge(graphdef, params)(tokens, context, t, case.ids, text_ids(CONTEXT))


def ours(case: Case, params: Any, remat: str) -> Contender:
    """The model of this repository under `jax.jit`, state donated."""
    graphdef = nnx.graphdef(
        nnx.eval_shape(lambda: DiT(case.config, rngs=nnx.Rngs(0), dtype=jnp.dtype(case.dtype), remat=remat))
    )
    optimizer = optim.optimizer(optimizer_config(), 10**6)

    call = functools.partial(predict, graphdef, case)

    def update(state: Any, tokens: Any, context: Any, t: Any, target: Any) -> Any:
        params, moments = state
        loss = lambda params: jnp.mean((call(params, tokens, context, t) - target) ** 2)  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), (value, optax.tree.norm(gradient))

    state = jax.device_put((params, optimizer.init(params)))
    inputs, target = jax.device_put(((case.tokens, case.context, case.t), case.target))
    start = time.perf_counter()
    forward = jax.jit(call).lower(state[0], *inputs).compile()
    between = time.perf_counter()
    step = jax.jit(update, donate_argnums=0).lower(state, *inputs, target).compile()
    facts = {"forward_compile_s": between - start, "step_compile_s": time.perf_counter() - between}
    memory = step.memory_analysis()
    if memory:
        facts["step_bytes"] = memory.temp_size_in_bytes + memory.argument_size_in_bytes

    def one_step() -> tuple[float, float]:
        nonlocal state
        state, (loss, norm) = jax.block_until_ready(step(state, *inputs, target))
        return float(loss), float(norm)

    return Contender(lambda: np.asarray(forward(state[0], *inputs)), one_step, facts)


def theirs(case: Case, params: Any, compiled: bool) -> Contender:
    """diffusers' class with the same weights; the update is torch's fused AdamW."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model = torch_model(case.config, params).to(device)
    call = torch.compile(model) if compiled else model
    optimizer = torch_optimizer(model)
    tokens, context, t, target, ids, words = (
        torch.tensor(array, device=device)
        for array in (case.tokens, case.context, case.t, case.target, case.ids, text_ids(CONTEXT))
    )

    def predict() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bfloat16"):
            return call(tokens, context, t, img_ids=ids, txt_ids=words, return_dict=False)[0].float()

    @torch.no_grad()
    def forward() -> np.ndarray:
        return predict().cpu().numpy()

    def step() -> tuple[float, float]:
        optimizer.zero_grad()
        loss = ((predict() - target) ** 2).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer_config().clip_norm)
        optimizer.step()
        if device == "cuda":
            facts["step_bytes"] = torch.cuda.max_memory_allocated()
        return loss.item(), norm.item()

    facts: dict[str, float] = {}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return Contender(forward, step, facts)


def torch_model(config: DiTConfig, params: Any) -> torch.nn.Module:
    """Our parameters in the stock class."""
    model = diffusers.Flux2Transformer2DModel(**dataclasses.asdict(config))
    leaves = mapping.flatten(params)
    plan = mapping.plan(mapping.TRANSFORMER, params)
    model.load_state_dict({tensor.key: torch.tensor(mapping.to_torch(tensor, leaves.__getitem__)) for tensor in plan})
    return model


def torch_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """`optim.optimizer` in torch's words, its clipping apart: matrices decay, norms do not."""
    chosen = optimizer_config()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": chosen.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, chosen.lr, (chosen.b1, chosen.b2), chosen.eps, fused=True)


def optimizer_config() -> Any:
    """The default optimizer without warm-up."""
    chosen = schema.defaults().optim
    chosen.warmup_steps = 0
    return chosen


def check_agreement(dtype: str, contenders: dict[str, Contender]) -> None:
    """Runs every contender twice, which also compiles and warms up, and compares it with the eager peer.

    Raises:
      SystemExit: if predictions, loss or gradient norm differ by more than rounding.
    """
    results = {}
    for name, contender in contenders.items():
        start = time.perf_counter()
        prediction = contender.forward()
        between = time.perf_counter()
        results[name] = (prediction, np.array([contender.step(), contender.step()]))
        contender.facts["first_calls_s"] = time.perf_counter() - start
        contender.facts.setdefault("forward_compile_s", between - start)
        contender.facts.setdefault("step_compile_s", time.perf_counter() - between)
    expected, history = results["torch eager"]
    for name, (prediction, losses) in results.items():
        errors = [
            float(np.sqrt(((prediction - expected) ** 2).mean() / (expected**2).mean())),
            float(np.abs(losses / history - 1).max()),
        ]
        contenders[name].facts["relative_error"] = max(errors)
        if max(errors) > _AGREE[dtype]:
            raise SystemExit(f"{name} and torch eager differ by {errors} in {dtype}; expected {_AGREE[dtype]} at most")


def take_turns(
    calls: dict[str, Callable[[], Any]], turns: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and processor seconds of each call, one after the other, `turns` times."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            call()  # the first call after another's turn finds cold caches
            start, busy = time.perf_counter(), time.process_time()
            call()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - busy)
    return wall, cpu


def forward_flops(case: Case) -> int:
    """Of one forward pass: matrix products and full attention; chunks and their padding are a matter of the kernel."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: DiT(case.config, rngs=nnx.Rngs(0), kernel="xla")))
    call = functools.partial(predict, graphdef, case)
    return flops.count(jax.make_jaxpr(call)(nnx.to_pure_dict(params), case.tokens, case.context, case.t))


def keep_memory() -> None:
    """Spares both contenders the fresh pages of every call, on which a CPU may spend longer than on computing.

    glibc keeps freed blocks of the main thread, which is where eager torch allocates. XLA allocates in its own threads, whose
    large blocks glibc maps anew whatever it is told: huge pages make that cheap, but only a new process can ask for them.
    """
    if sys.platform != "linux":
        return
    tunables, huge = os.environ.get("GLIBC_TUNABLES", ""), "glibc.malloc.hugetlb=1"
    if huge not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, huge)))
        os.execv(sys.executable, sys.orig_argv)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped on its own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def matmul_rate(dtype: str) -> float:
    """FLOP/s of one large matrix product in torch, the best of some."""
    gpu = jax.default_backend() == "gpu"
    side = 8192 if gpu else 2048
    a = torch.ones((side, side), dtype=getattr(torch, dtype), device="cuda" if gpu else "cpu")
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product = a @ a
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        del product
    return 2 * side**3 / min(seconds)


def machine() -> str:
    """One line about what this ran on."""
    if jax.default_backend() != "cpu":
        chip = jax.devices()[0].device_kind
    else:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        chip = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0))
    return (
        f"{chip}, {cores} threads, jax {jax.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}"
    )


def to_text(result: dict[str, Any]) -> str:
    """A table for people."""
    lines = [f"\n{result['tokens']} tokens, batch {result['batch']}, {result['dtype']}"]
    titles = "".join(f"{what + ' s':>11}{'ratio':>7}{'cpu':>6}" for what in ("forward", "step"))
    lines += [f"{'':14}{titles}{'of peak':>9}{'compile s':>11}"]
    for name, seconds in result["seconds"].items():
        line = f"{name:14}"
        for what in ("forward", "step"):
            ratio = result["ratios"][name][what] if name != "jax" else {"wall": 1, "cpu": 1}
            line += f"{seconds[what]['median']:11.3f}{ratio['wall']:7.2f}{ratio['cpu']:6.2f}"
        lines.append(f"{line}{seconds['step']['mfu']:9.1%}{result['facts'][name]['step_compile_s']:11.1f}")
    return "\n".join(lines) + "\n"


def _ratio(one: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def _list(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main()
