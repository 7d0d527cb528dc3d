"""Native row kernels equal torch's: functions, norms, rotations, and the cache's new entries."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.worker.native.kernels import VARIANT_NAMES, address, kernels
from worker.layers.rope_spec import RopeSpec
from worker.layers.rotary import RotaryEmbedding, inverse_frequencies, rotate
from worker.native.structs import NormStruct, QKVStruct

ON_VARIANTS = pytest.mark.parametrize("variant", VARIANT_NAMES)

FUNCTIONS: list[tuple[int, Any, float, float]] = [  # with range and relative tolerance
    (0, torch.exp, 87, 1e-6),
    (1, torch.exp2, 120, 1e-6),
    (2, torch.tanh, 10, 1e-6),
    (3, torch.sigmoid, 80, 1e-6),
]
ACTIVATIONS: list[Any] = [
    F.silu,
    F.gelu,
    lambda x: F.gelu(x, approximate="tanh"),
    F.relu,
]


def applied(variant: str, function: int, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    kernels(variant).shoal_test_function(function, x.data_ptr(), len(x), y.data_ptr())
    return y


@ON_VARIANTS
@pytest.mark.parametrize(("number", "function", "limit", "tolerance"), FUNCTIONS)
def test_functions_are_accurate(
    variant: str, number: int, function: Any, limit: float, tolerance: float
) -> None:
    x = torch.cat((torch.linspace(-limit, limit, 20011), torch.linspace(-1, 1, 20011)))
    expected = function(x.double())
    difference = (applied(variant, number, x) - expected).abs()
    assert (difference <= tolerance * expected.abs()).all()


@ON_VARIANTS
@pytest.mark.parametrize("number", [0, 1])
def test_exponentials_keep_their_limits(variant: str, number: int) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, 500.0, -500.0])
    y = applied(variant, number, x)
    assert y[[0, 1, 3, 4, 5]].tolist() == [torch.inf, 0.0, 1.0, torch.inf, 0.0]
    assert y[2].isnan()


@ON_VARIANTS
def test_exponential_of_softmax_is_accurate_and_keeps_its_limits(variant: str) -> None:
    x = torch.cat((torch.linspace(-125, 0, 20011), torch.linspace(-1, 0, 20011)))
    expected = torch.exp2(x.double())
    assert ((applied(variant, 5, x) - expected).abs() <= 2e-7 * expected).all()
    ends = torch.tensor([-torch.inf, torch.nan, 0.0, -0.0, -125.5, -1e30, -125.0])
    y = applied(variant, 5, ends)
    assert y[1].isnan()
    assert y[[0, 2, 3, 4, 5, 6]].tolist() == [0.0, 1.0, 1.0, 0.0, 0.0, 2.0**-125]


@ON_VARIANTS
@pytest.mark.parametrize("kind", range(len(ACTIVATIONS)))
def test_activations_match_torch(variant: str, kind: int) -> None:
    x = torch.linspace(-12, 12, 5003)
    expected = ACTIVATIONS[kind](x.double())
    assert (applied(variant, 6 + kind, x) - expected).abs().max() < 2e-6


@ON_VARIANTS
@pytest.mark.parametrize("size", [1, 7, 16, 48, 576, 4099])
@pytest.mark.parametrize("kind", ["rms", "layer", "none"])
@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("is_plain", [False, True])
def test_norms_match_torch(
    variant: str, size: int, kind: str, is_bf16: bool, is_plain: bool
) -> None:
    torch.manual_seed(size)
    x = torch.randn(size) * 3 + 1
    weight, bias = (None, None) if is_plain else (torch.randn(size), torch.randn(size))
    struct = NormStruct(address(weight), address(bias), ["none", "rms", "layer"].index(kind), 1e-5)
    if kind == "layer":
        expected = F.layer_norm(x, (size,), weight, bias, 1e-5)
    elif kind == "rms":
        expected = F.rms_norm(x, (size,), weight, 1e-5) + (0 if bias is None else bias)
    else:
        expected = x
    y = torch.empty(size, dtype=torch.bfloat16 if is_bf16 else torch.float32)
    kernels(variant).shoal_test_norm(struct, x.data_ptr(), size, is_bf16, y.data_ptr())
    tolerance = 2**-7 if is_bf16 else 1e-5
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)


@ON_VARIANTS
def test_multiplied_row_is_added(variant: str) -> None:
    x, y = torch.randn(2, 77)
    expected = x + 0.25 * y
    kernels(variant).shoal_test_add(y.data_ptr(), 0.25, 77, x.data_ptr())
    torch.testing.assert_close(x, expected)


QKV_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotated": {"rotary_dim": 32},
    "rotated in part": {"rotary_dim": 20},
    "interleaved": {"rotary_dim": 32, "is_interleaved": True},
    "interleaved in part": {"rotary_dim": 12, "is_interleaved": True},
    "clipped": {"clip": 0.7, "rotary_dim": 32},
    "rms of heads": {"norm_kind": 1, "rotary_dim": 32},
    "layer of heads with weights each": {"norm_kind": 2, "has_head_weights": 1, "has_bias": True},
    "rms of width": {"norm_kind": 1, "norm_span": 1, "has_head_weights": 1, "rotary_dim": 32},
    "layer of width, clipped": {
        "norm_kind": 2,
        "norm_span": 1,
        "has_head_weights": 1,
        "has_bias": True,
        "clip": 0.9,
    },
}


@ON_VARIANTS
@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("head_dim", [32, 40])
@pytest.mark.parametrize("options", QKV_VARIANTS.values(), ids=QKV_VARIANTS)
def test_tokens_are_prepared_as_torch_does(
    variant: str, is_bf16: bool, head_dim: int, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    num_heads, num_kv_heads, num_tokens = 4, 2, 5
    heads = {"q": num_heads, "k": num_kv_heads}
    options = dict(options)
    has_bias, has_weights = options.pop("has_bias", False), options.get("norm_kind", 0) > 0
    shapes = {
        part: (count if options.get("has_head_weights") else 1, head_dim)
        for part, count in heads.items()
    }
    weights = {p: torch.randn(s) if has_weights else None for p, s in shapes.items()}
    biases = {p: torch.randn(s) if has_bias else None for p, s in shapes.items()}
    rows = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    positions = torch.tensor([0, 3, 17, 31, 99])
    slots = torch.tensor([5, 0, 40, 63, 7])
    rope = RopeSpec(10000.0, options.get("rotary_dim", 0) or head_dim)
    tables = rotary_tables(rope) if "rotary_dim" in options else (None, None)
    struct = QKVStruct(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=1e-5,
        q_weight=address(weights["q"]),
        k_weight=address(weights["k"]),
        q_bias=address(biases["q"]),
        k_bias=address(biases["k"]),
        cos=address(tables[0]),
        sin=address(tables[1]),
        **options,
    )
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    k_cache, v_cache = torch.zeros(2, 64, num_kv_heads, head_dim, dtype=dtype)
    q = torch.empty(num_tokens, num_heads, head_dim)
    kernels(variant).shoal_test_prepare(
        struct,
        rows.data_ptr(),
        rows.stride(0),
        num_tokens,
        positions.data_ptr(),
        slots.data_ptr(),
        q.data_ptr(),
        is_bf16,
        k_cache.data_ptr(),
        v_cache.data_ptr(),
    )
    clip = options.get("clip", torch.inf)
    wanted = rows.clamp(-clip, clip)
    wanted_q, wanted_k, wanted_v = wanted.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    wanted_q = rotated(normed(wanted_q, struct, weights["q"], biases["q"]), positions, struct)
    wanted_k = rotated(normed(wanted_k, struct, weights["k"], biases["k"]), positions, struct)
    torch.testing.assert_close(q, wanted_q, rtol=1e-5, atol=1e-5)
    tolerance = 2**-7 if is_bf16 else 1e-5
    torch.testing.assert_close(k_cache[slots].float(), wanted_k, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(v_cache[slots].float(), wanted_v, rtol=tolerance, atol=tolerance)
    others = torch.ones(64, dtype=torch.bool)
    others[slots] = False
    assert not k_cache[others].any() and not v_cache[others].any()


def rotary_tables(rope: RopeSpec) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(100.0), inverse_frequencies(rope, 100)[0])
    return angles.cos(), angles.sin()


def normed(x: Tensor, struct: QKVStruct, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if not struct.norm_kind:
        return x
    dims = (1, 2) if struct.norm_span else (2,)
    mean = x.mean(dim=dims, keepdim=True) if struct.norm_kind == 2 else 0.0
    x = x - mean
    x = x * (x.square().mean(dim=dims, keepdim=True) + struct.norm_eps).rsqrt()
    assert weight is not None
    return x * weight + (0 if bias is None else bias)


def rotated(x: Tensor, positions: Tensor, struct: QKVStruct) -> Tensor:
    if not struct.cos:
        return x
    rope = RopeSpec(10000.0, struct.rotary_dim, is_interleaved=bool(struct.is_interleaved))
    table = RotaryEmbedding(rope, 100, torch.float32, torch.device("cpu"))
    return rotate(x.clone(), table.rotation(positions))
