"""Every kernel against softmax attention in float64, alone and on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from uniser_jax import mesh as meshes
from uniser_jax.models import attention as kernels
from uniser_jax.models.attention import attention, choose

RUN_HERE = ("xla", "chunked", "splash", "ring")


def arrays(n: int, m: int, heads: int, dim: int):
    """q, k, v and the weights of a loss."""
    rng = np.random.default_rng(n + m + dim)
    return [rng.normal(size=(2, length, heads, dim)) for length in (n, m, m, n)]


def seen_keys(m: int) -> np.ndarray:
    """The second row misses keys in the middle and at the end."""
    seen = np.ones((2, m), bool)
    seen[1, m // 3 : m // 2] = seen[1, -m // 5 :] = False
    return seen


def reference(q, k, v, seen, w):
    """Attention and the gradient of its sum, weighted by w; all float64, every key that is not seen left out."""
    out, gradients = np.zeros_like(q), [np.zeros_like(x) for x in (q, k, v)]
    for row in range(len(q)):
        there = np.flatnonzero(seen[row]) if seen is not None else np.arange(k.shape[1])
        scale = q.shape[-1] ** -0.5
        scores = np.einsum("nhd,mhd->hnm", q[row], k[row][there]) * scale
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        out[row] = np.einsum("hnm,mhd->nhd", p, v[row][there])
        dp = np.einsum("nhd,mhd->hnm", w[row], v[row][there])
        ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
        gradients[0][row] = np.einsum("hnm,mhd->nhd", ds, k[row][there])
        gradients[1][row][there] = np.einsum("hnm,nhd->mhd", ds, q[row])
        gradients[2][row][there] = np.einsum("hnm,nhd->mhd", p, w[row])
    return out, gradients


@functools.partial(jax.jit, static_argnums=5)
def value_and_gradient(q, k, v, seen, w, kernel: str):
    def loss(q, k, v):
        out = attention(q, k, v, kernel, seen)
        return (out.astype(jnp.float32) * w).sum(), out

    gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return out, gradients


def assert_equals_reference(got, expected, dtype: str) -> None:
    # bfloat16 keeps 8 bits: errors of half a unit in inputs' products, far below what a wrong mask or scale makes.
    tolerance = {"float32": 3e-6, "bfloat16": 2e-2}[dtype]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, atol=tolerance * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("kernel", RUN_HERE)
@pytest.mark.parametrize(
    ("n", "m", "heads", "dim", "dtype", "masked"),
    [
        (300, 300, 2, 64, "float32", True),  # nothing divides a block
        (520, 130, 1, 128, "float32", False),
        (130, 520, 1, 64, "bfloat16", True),
        (70, 384, 1, 128, "bfloat16", False),  # the keys need no padding
        (2100, 40, 2, 8, "float32", True),  # several chunks of one head
    ],
)
def test_kernels_equal_softmax_in_float64(kernel, n, m, heads, dim, dtype, masked) -> None:
    q, k, v = (np.asarray(jnp.asarray(x, dtype), np.float64) for x in arrays(n, m, heads, dim)[:3])
    w, seen = arrays(n, m, heads, dim)[3], seen_keys(m) if masked else None
    got = value_and_gradient(*(jnp.asarray(x, dtype) for x in (q, k, v)), seen, w, kernel)
    assert got[0].dtype == dtype
    assert_equals_reference(got, reference(q, k, v, seen, w), dtype)


def test_chunks_of_all_heads_as_gpus_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    q, k, v, w = arrays(1032, 40, 2, 8)
    seen = seen_keys(40)
    given = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    traced = jax.make_jaxpr(functools.partial(attention, kernel="chunked"))(*given)
    assert "f32[2,2,352,40]" in str(traced)  # a third of the queries, to a multiple of 16
    got = value_and_gradient.__wrapped__(*given, seen, w, "chunked")
    assert_equals_reference(got, reference(q, k, v, seen, w), "float32")


def test_splash_without_the_fused_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_PARTIAL", 0)  # what more than 16 tiles of keys take
    q, k, v, w = arrays(130, 300, 1, 64)
    seen = seen_keys(300)
    got = value_and_gradient.__wrapped__(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), seen, w, "splash")
    assert_equals_reference(got, reference(q, k, v, seen, w), "float32")


def test_what_cudnn_is_given_equals_softmax() -> None:
    """There is no cuDNN here: its arguments go to XLA, which takes lengths of keys the same way."""
    q, k, v, _ = arrays(70, 90, 2, 64)
    for seen in (None, seen_keys(90)):
        given = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
        out = kernels._cudnn(*given, None if seen is None else jnp.asarray(seen), implementation="xla")
        assert_equals_reference(out, reference(q, k, v, seen, q)[0], "float32")


@pytest.mark.parametrize("kernel", RUN_HERE)
def test_a_mesh_changes_nothing(kernel: str) -> None:
    q, k, v, w = (jnp.asarray(x, jnp.float32) for x in arrays(64, 130, 2, 64))
    seen = jnp.asarray(seen_keys(130))
    alone = value_and_gradient(q, k, v, seen, w, kernel)
    with jax.set_mesh(meshes.make_mesh({"fsdp": 2, "sequence": 2, "tensor": 2})):
        spread = value_and_gradient(q, k, v, seen, w, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), spread, alone)


def test_a_sequence_axis_gathers_keys_and_a_ring_passes_them_on() -> None:
    mesh = meshes.make_mesh({"sequence": 4, "tensor": 2})
    sharding = NamedSharding(mesh, meshes.spec("batch", "tokens", "heads", "head_dim"))
    shape = jax.ShapeDtypeStruct((2, 1024, 2, 64), jnp.float32, sharding=sharding)
    for kernel, has, lacks in (("chunked", "all-gather", "permute"), ("ring", "collective-permute", "all-gather")):
        with jax.set_mesh(mesh):
            compiled = jax.jit(functools.partial(attention, kernel=kernel)).lower(*(shape,) * 3).compile()
        text = compiled.as_text()
        assert has in text, kernel
        assert lacks not in text, kernel
        assert compiled.output_shardings.is_equivalent_to(sharding, 4)
        assert "f32[2,256,1,64]" in text  # queries stay: a quarter of the tokens, half of the heads


@pytest.mark.parametrize(
    ("platform", "dtype", "dim", "keys", "kernel"),
    [
        ("tpu", jnp.bfloat16, 128, 4096, "splash"),
        ("tpu", jnp.bfloat16, 128, 256, "xla"),
        ("gpu", jnp.bfloat16, 128, 256, "cudnn"),
        ("gpu", jnp.float32, 128, 4096, "chunked"),
        ("gpu", jnp.bfloat16, 256, 4096, "chunked"),
        ("cpu", jnp.bfloat16, 64, 4096, "chunked"),
        ("cpu", jnp.float32, 64, 512, "chunked"),
        ("cpu", jnp.float32, 64, 256, "xla"),
    ],
)
def test_auto_suits_platform_length_dtype_and_head(platform, dtype, dim, keys, kernel) -> None:
    assert choose("auto", platform, jnp.dtype(dtype), dim, keys) == kernel


@pytest.mark.parametrize(
    ("kernel", "platform", "dtype", "dim", "message"),
    [
        ("flash", "cpu", jnp.float32, 64, "'flash' is unknown; known: auto, xla, chunked, splash, cudnn, ring"),
        ("splash", "gpu", jnp.float32, 64, "needs a TPU"),
        ("cudnn", "tpu", jnp.bfloat16, 64, "needs an NVIDIA GPU, these devices are tpu"),
        ("cudnn", "gpu", jnp.float32, 64, "takes bfloat16 or float16 .* not float32"),
        ("cudnn", "gpu", jnp.bfloat16, 36, "heads of 8, 16, .* 36"),
    ],
)
def test_kernels_that_cannot_run_are_refused_in_one_line(kernel, platform, dtype, dim, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        choose(kernel, platform, jnp.dtype(dtype), dim, 4096)
    assert "\n" not in str(caught.value)


def test_cudnn_is_refused_here() -> None:
    with pytest.raises(ValueError, match="these devices are cpu"):
        attention(*(jnp.zeros((1, 2, 1, 8), jnp.bfloat16),) * 3, kernel="cudnn")


@pytest.mark.parametrize("dim", [64, 128])
def test_splash_compiles_for_a_tpu_mesh(dim: int, tpu_devices) -> None:
    """Forward and backward, lengths that do not divide a block, keys that are not seen; no TPU is needed."""
    mesh = meshes.make_mesh({"fsdp": 2, "sequence": 2}, tpu_devices("v5e:2x2"))
    n = 1100
    placed = {
        names: NamedSharding(mesh, meshes.spec(*names))
        for names in (("batch", "tokens", "heads", "head_dim"), ("batch", "keys"))
    }
    q, seen = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for shape, dtype, sharding in zip(((2, n, 2, dim), (2, n)), (jnp.bfloat16, bool), placed.values(), strict=True)
    )
    w = jax.ShapeDtypeStruct(q.shape, jnp.float32, sharding=q.sharding)
    with jax.set_mesh(mesh):
        compiled = jax.jit(value_and_gradient.__wrapped__, static_argnums=5).lower(q, q, q, seen, w, "auto").compile()
    assert compiled.as_text().count("tpu_custom_call") >= 2  # forward, and the fused backward
