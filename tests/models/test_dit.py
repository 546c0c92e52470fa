"""The transformer against an independent float64 derivation of the FLUX.2 specification in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from uniser_jax import mesh as meshes
from uniser_jax.models import attention, dit
from uniser_jax.models.codec import PixelCodec
from uniser_jax.models.dit import DiT, product, rms_normalized
from uniser_jax.models.presets import DiTConfig
from uniser_jax.models.prompts import text_ids

SMALL = DiTConfig(
    in_channels=12,
    out_channels=7,
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=32,
    num_attention_heads=2,
    joint_attention_dim=10,
    axes_dims_rope=(8, 8, 8, 8),
)
CONFIGS = {
    "1+2": SMALL,
    "2+3, heads of 16": dataclasses.replace(
        SMALL, num_layers=2, num_single_layers=3, attention_head_dim=16, axes_dims_rope=(2, 6, 6, 2)
    ),
    "guidance": dataclasses.replace(SMALL, guidance_embeds=True),
}


def random_model(config: DiTConfig, **settings) -> DiT:
    """Every parameter random and of order one in effect, the zero-initialised ones too."""
    model = DiT(config, rngs=nnx.Rngs(0), **settings)
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(0)
    values = [
        rng.uniform(0.5, 1.5, leaf.shape)
        if leaf.ndim < 2 or (leaf.shape[-2] == config.num_layers and leaf.shape[-1] == config.attention_head_dim)
        else rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[-2])
        for leaf in leaves
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, [jnp.asarray(v, jnp.float32) for v in values]))


def inputs(config: DiTConfig, batch: int = 2):
    rng = np.random.default_rng(1)
    ids = PixelCodec(8).ids(24, 32)
    return {
        "tokens": rng.normal(size=(batch, len(ids), config.in_channels)).astype(np.float32),
        "context": rng.normal(size=(batch, 5, config.joint_attention_dim)).astype(np.float32),
        "t": np.array([0.3, 1.0], np.float32)[:batch],
        "image_ids": ids,
        "text_ids": text_ids(5),
        "guidance": np.array([3.5, 2.0], np.float32)[:batch] if config.guidance_embeds else None,
    }


def reference(p: dict, config: DiTConfig, tokens, context, t, image_ids, text_ids, guidance):
    """Equations of the specification, in float64 but for the two float32 islands (sinusoid and rotation)."""
    heads, dim = config.num_attention_heads, config.attention_head_dim

    def silu(x):
        return x / (1 + np.exp(-x))

    def norm(x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.eps)

    def embed(into, out, value):
        k = np.arange(128, dtype=np.float32)
        angle = (value * np.float32(1000)).astype(np.float32)[:, None] * np.exp(-np.log(np.float32(10000)) * k / 128)
        s = np.concatenate([np.cos(angle), np.sin(angle)], -1).astype(np.float64)
        return silu(s @ p[into]["kernel"]) @ p[out]["kernel"]

    embedding = embed("time_in", "time_out", t)
    if guidance is not None:
        embedding = embedding + embed("guidance_in", "guidance_out", guidance)
    modulation = {
        name: np.split((silu(embedding) @ p[f"{name}_modulation"]["kernel"])[:, None], parts, -1)
        for name, parts in (("image", 6), ("text", 6), ("single", 3), ("out", 2))
    }

    ids = np.concatenate([text_ids, image_ids])
    angle = np.concatenate(
        [ids[:, [a]] * config.rope_theta ** (-2 * np.arange(d // 2) / d) for a, d in enumerate(config.axes_dims_rope)],
        -1,
    )
    turn = np.exp(1j * angle)[None, :, None]

    def rotate(x):  # adjacent pairs are real and imaginary parts
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    def qkv(n, w, i):
        q, k, v = ((n @ w[name]["kernel"][i]).reshape(*n.shape[:2], heads, dim) for name in ("q", "k", "v"))
        q, k = (
            x / np.sqrt((x * x).mean(-1, keepdims=True) + config.eps) * w[name]["scale"][i]
            for x, name in ((q, "q_norm"), (k, "k_norm"))
        )
        return q, k, v

    def attend(q, k, v):
        logits = np.einsum("bqhd,bkhd->bhqk", rotate(q), rotate(k)) / np.sqrt(dim)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*q.shape[:2], -1)

    def mlp(n, w, i):
        return (silu(n @ w["gate"]["kernel"][i]) * (n @ w["up"]["kernel"][i])) @ w["down"]["kernel"][i]

    x, c = tokens @ p["image_in"]["kernel"], context @ p["text_in"]["kernel"]
    for i in range(config.num_layers):
        streams = [(c, p["double"]["text"], modulation["text"]), (x, p["double"]["image"], modulation["image"])]
        parts = [qkv((1 + m[1]) * norm(y) + m[0], w, i) for y, w, m in streams]
        joint = attend(*(np.concatenate([a, b], 1) for a, b in zip(*parts, strict=True)))
        length, out = c.shape[1], []
        for (y, w, m), o in zip(streams, (joint[:, :length], joint[:, length:]), strict=True):
            y = y + m[2] * (o @ w["out"]["kernel"][i])
            out.append(y + m[5] * mlp((1 + m[4]) * norm(y) + m[3], w, i))
        c, x = out
    h, m, w = np.concatenate([c, x], 1), modulation["single"], p["single"]["joint"]
    for i in range(config.num_single_layers):
        n = (1 + m[1]) * norm(h) + m[0]
        h = h + m[2] * (attend(*qkv(n, w, i)) @ w["out"]["kernel"][i] + mlp(n, w, i))
    scale, shift = modulation["out"]
    return (norm(h[:, context.shape[1] :]) * (1 + scale) + shift) @ p["image_out"]["kernel"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_equals_the_specification(config: DiTConfig) -> None:
    model = random_model(config)
    given = inputs(config)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(model)))
    expected = reference(params, config, **given)
    got = jax.jit(lambda m, **kw: m(image_ids=given["image_ids"], text_ids=given["text_ids"], **kw))(
        model, **{k: v for k, v in given.items() if not k.endswith("ids")}
    )
    assert expected.std() > 0.3
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("remat", ["dots", "full", "offload"])
def test_rematerialisation_changes_no_gradient(remat: str) -> None:
    given = inputs(SMALL)

    def gradient(remat: str):
        graphdef, state = nnx.split(random_model(SMALL, remat=remat))
        return jax.jit(jax.grad(lambda s: (nnx.merge(graphdef, s)(**given) ** 2).mean()))(state)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient("none"), gradient(remat))


def test_dots_keeps_of_a_single_block_what_its_gradient_needs_and_no_more() -> None:
    given = inputs(SMALL)
    graphdef, state = nnx.split(random_model(SMALL, remat="dots"))
    gradient = jax.make_jaxpr(jax.grad(lambda s: (nnx.merge(graphdef, s)(**given) ** 2).mean()))(state)
    scans = [
        equation.params | {"out": equation.outvars} for equation in gradient.eqns if equation.primitive.name == "scan"
    ]
    (forward,) = (each for each in scans if each["length"] == SMALL.num_single_layers and not each["reverse"])
    of_a_layer = forward["jaxpr"].out_avals
    stacked = [
        outer.aval for outer, inner in zip(forward["out"], of_a_layer, strict=True) if outer.aval.ndim > inner.ndim
    ]
    kept = [aval.size for aval in stacked]
    each = SMALL.num_single_layers * 2 * (len(given["image_ids"]) + len(given["text_ids"]))  # layers, examples, tokens
    d, m = SMALL.width, SMALL.mlp_width
    # The sum over exponentials, the input, q, k, v, attention, what comes out, and the two sides of the gate.
    assert sorted(size // each for size in kept) == [SMALL.num_attention_heads] + 6 * [d] + 2 * [m]


def test_dots_runs_cudnn_forward_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("check_cudnn_version", "check_compute_capability"):  # what this machine has not
        monkeypatch.setattr(fused_attention_stablehlo, check, lambda *_: 91_000)

    def block(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        q, k, v = jnp.split((x @ kernel).reshape(2, 256, 12, 64), 3, 2)
        return attention._cudnn(q, k, v, None).reshape(x.shape), None

    def loss(kernels: jax.Array) -> jax.Array:
        return jax.lax.scan(dit.REMAT["dots"](block), jnp.ones((2, 256, 256), jnp.bfloat16), kernels)[0].sum()

    traced = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((3, 256, 768), jnp.bfloat16)))
    assert traced.count("dot_product_attention_fwd_wrapper[") == 1
    assert traced.count("dot_product_attention_bwd_wrapper[") == 1


def test_offload_keeps_block_inputs_in_the_host_memory_of_a_tpu(tpu_devices) -> None:
    given, mesh = inputs(SMALL), meshes.make_mesh({"data": 2, "fsdp": 2}, tpu_devices("v5e:2x2"))
    rows = {name: jnp.repeat(given[name], 4, 0) for name in ("tokens", "context", "t")}

    graphdef, state = nnx.split(nnx.eval_shape(lambda: DiT(SMALL, rngs=nnx.Rngs(0), remat="offload")))

    def gradient(state, rows):
        ids = {name: given[name] for name in ("image_ids", "text_ids")}
        return jax.grad(lambda s: (nnx.merge(graphdef, s)(**rows, **ids) ** 2).mean())(state)

    placed = [
        jax.tree.map(lambda x, s=sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree)
        for tree, sharding in ((nnx.to_pure_dict(state), NamedSharding(mesh, P())), (rows, meshes.batch_sharding(mesh)))
    ]
    with jax.set_mesh(mesh):
        compiled = jax.jit(gradient).lower(*placed).compile()
    tokens = len(given["image_ids"]) + len(given["text_ids"])
    numbers = (SMALL.num_layers + SMALL.num_single_layers) * 2 * tokens * SMALL.width  # 2 rows on each chip
    assert compiled.memory_analysis().host_temp_size_in_bytes >= 4 * numbers


def test_bfloat16_stays_close_and_returns_float32() -> None:
    given = inputs(SMALL)
    exact, rough = (random_model(SMALL, dtype=dtype)(**given) for dtype in (jnp.float32, jnp.bfloat16))
    assert rough.dtype == jnp.float32
    assert float(jnp.sqrt(jnp.mean((exact - rough) ** 2) / jnp.mean(exact**2))) < 0.05


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("bfloat16", 1e-5)])
def test_a_kernel_learns_from_sums_that_are_not_rounded(dtype: str, error: float) -> None:
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(size=(2, 40, width)), dtype) for width in (24, 16))
    kernel = jnp.asarray(rng.normal(size=(24, 16)), jnp.float32)
    y, pull = jax.vjp(product, x, kernel)
    into, learned = pull(g)
    assert y.dtype == into.dtype == x.dtype
    exact = np.einsum("bni,bno->io", *(np.asarray(a, np.float64) for a in (x, g)))
    np.testing.assert_allclose(learned, exact, atol=error * np.abs(exact).max())
    rounded = jax.vjp(lambda w: x @ w.astype(dtype), kernel)[1](g)[0]
    assert np.abs(learned - exact).max() <= np.abs(rounded - exact).max()


@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_the_derivative_of_a_norm_is_that_of_finite_differences(eps: float) -> None:
    """In float64 by numpy, with rows as small as eps and as large as activations become."""
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 3, 1, 8)) * np.array([[[1e-2]], [[1]], [[1e2]]]), rng.normal(size=(2, 3, 1, 8))
    y, pull = jax.vjp(lambda x: rms_normalized(x, eps), x.astype(np.float32))

    def norm(x):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)

    expected = np.zeros_like(x)
    for i in range(8):
        h = np.zeros(8)
        h[i] = 1e-6
        expected[..., i] = np.sum(g * (norm(x + h) - norm(x - h)), -1) / 2e-6
    np.testing.assert_allclose(y, norm(x), rtol=1e-5, atol=1e-6)
    found = pull(g.astype(np.float32))[0]
    sizes = np.abs(expected).max(-1, keepdims=True)
    np.testing.assert_allclose(found / sizes, expected / sizes, atol=1e-5)


def test_initial_output_is_zero() -> None:
    assert not DiT(SMALL, rngs=nnx.Rngs(0))(**inputs(SMALL)).any()


def test_unknown_remat_and_missing_guidance_are_refused() -> None:
    with pytest.raises(ValueError, match="none, dots, full, offload"):
        DiT(SMALL, rngs=nnx.Rngs(0), remat="some")
    config = CONFIGS["guidance"]
    with pytest.raises(ValueError, match="guidance"):
        random_model(config)(**inputs(config) | {"guidance": None})
