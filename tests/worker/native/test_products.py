"""Packed products equal torch's for all numbers of rows, and do not depend on that number."""

import ctypes

import pytest
import torch
from torch import Tensor

from benchmarks import native_product
from tests.worker.native.libraries import VARIANT_NAMES, library_of
from worker.native.library import Team
from worker.native.packing import PANEL, PackedWeight, Packer, gated

pytestmark = pytest.mark.skipif(not VARIANT_NAMES, reason="no kernels for this CPU")

DTYPE_LIST = [torch.float32, torch.bfloat16]
ROWS = [1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 24, 25, 31, 32, 36, 37, 64, 97, 130]
SHAPES = [(8, 32), (20, 33), (44, 31), (96, 130), (333, 64)]  # in, out


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def num_threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def multiply(library: ctypes.CDLL, team: Team, x: Tensor, weight: PackedWeight) -> Tensor:
    """x: [M, K]; returns [M, N padded]."""
    rows = torch.zeros(len(x), weight.depth)
    rows[:, : x.shape[1]] = x
    out = torch.full((len(x), weight.num_panels * PANEL), torch.nan)
    return native_product.multiply(library, team, rows, weight, out)


def random_weight(num_out: int, num_in: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(num_out * num_in)
    return torch.randn(num_out, num_in, generator=generator).to(dtype)


@pytest.mark.parametrize("name", VARIANT_NAMES)
@pytest.mark.parametrize("dtype", DTYPE_LIST)
@pytest.mark.parametrize("shape", SHAPES)
def test_product_equals_torch_for_any_number_of_rows(
    name: str, dtype: torch.dtype, shape: tuple[int, int], num_threads: int
) -> None:
    library = library_of(name)
    team = Team(library, num_threads)
    num_in, num_out = shape
    weight = random_weight(num_out, num_in, dtype)
    packed = Packer(library, team).pack(weight)
    # Numbers that bf16 holds: only the order of sums is left to differ.
    x = torch.randn(max(ROWS), num_in, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = x.double() @ weight.double().t()
    whole = multiply(library, team, x.float(), packed)
    tolerance = 1e-5 * num_in**0.5
    assert (whole[:, :num_out] - expected).abs().max() < tolerance
    assert (whole[:, num_out:] == 0).all()
    for num_rows in ROWS:
        part = multiply(library, team, x[:num_rows].float(), packed)
        assert torch.equal(part, whole[:num_rows]), f"{num_rows} rows"


@pytest.mark.parametrize("name", VARIANT_NAMES)
@pytest.mark.parametrize("dtype", DTYPE_LIST)
def test_weight_in_columns_is_packed_alike(name: str, dtype: torch.dtype) -> None:
    library = library_of(name)
    packer = Packer(library, Team(library, 1))
    weight = random_weight(70, 50, dtype)
    in_columns = weight.t().contiguous().t()
    assert torch.equal(packer.pack(weight).data, packer.pack(in_columns).data)


@pytest.mark.parametrize("dtype", DTYPE_LIST)
@pytest.mark.parametrize("size", [16, 20, 40])
def test_gated_pair_stands_side_by_side(dtype: torch.dtype, size: int) -> None:
    library = library_of(VARIANT_NAMES[0])
    team = Team(library, 1)
    gate_up = random_weight(2 * size, 24, dtype)
    bias = torch.arange(2.0 * size)
    packed = Packer(library, team).pack(gate_up, bias, gated)
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    halves = multiply(library, team, x, packed).view(3, -1, 2, PANEL // 2)
    gate, up = halves[:, :, 0].flatten(1)[:, :size], halves[:, :, 1].flatten(1)[:, :size]
    expected = x @ gate_up.float().t()
    torch.testing.assert_close(torch.cat((gate, up), dim=1), expected, rtol=1e-4, atol=1e-4)
    assert packed.bias is not None
    turns = packed.bias.view(-1, 2, PANEL // 2)
    assert torch.equal(turns[:, 0].flatten()[:size], bias[:size])
    assert torch.equal(turns[:, 1].flatten()[:size], bias[size:])
