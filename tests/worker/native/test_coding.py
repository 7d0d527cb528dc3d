"""Coded weights give what plain ones give: every number comes back, whatever its exponent."""

import ctypes

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worker.native.libraries import VARIANT_NAMES, library_of
from tests.worker.native.test_products import ROWS, multiply
from worker.native.coding import coded
from worker.native.library import Team
from worker.native.packing import DTYPES, PackedWeight, Packer, gated

pytestmark = pytest.mark.skipif(not VARIANT_NAMES, reason="no kernels for this CPU")

SHAPES = [(8, 32), (20, 33), (44, 31), (96, 130), (333, 64), (576, 96)]  # in, out


def weight_like_a_model(num_out: int, num_in: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_out, num_in, generator=generator) * 0.02).bfloat16()


def with_odd_numbers(weight: Tensor, share: float) -> Tensor:
    """Zeros of both signs, denormals, the least and the greatest: all but a share of strays."""
    numbers = [0.0, -0.0, 1e-40, -1e-40, 2.0**-126, 1.0, -3.0, 1e4, 3e38, -3e38, 1e-20]
    odd = torch.tensor(numbers).bfloat16()
    generator = torch.Generator().manual_seed(5)
    places = torch.rand(weight.shape, generator=generator) < share
    choice = torch.randint(len(numbers), weight.shape, generator=generator)
    return torch.where(places, odd[choice], weight)


def num_strays(weight: PackedWeight) -> int:
    """Counted in each panel's code, whose last number it is."""
    assert weight.codes is not None, "not coded"
    return int(weight.codes.numpy().view(np.int32)[:, -1].sum())


def rows_of(library: ctypes.CDLL, weight: PackedWeight, num_rows: int, num_in: int) -> Tensor:
    out = torch.full((num_rows, num_in), torch.nan)
    struct = ctypes.byref(weight.struct())
    for row in range(num_rows):
        library.shoal_probe_row(DTYPES[weight.dtype], struct, row, num_in, out[row].data_ptr())
    return out


@pytest.mark.parametrize("name", VARIANT_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 1e-3])
def test_every_number_comes_back(name: str, shape: tuple[int, int], share: float) -> None:
    library, (num_in, num_out) = library_of(name), shape
    team = Team(library, 2)
    weight = with_odd_numbers(weight_like_a_model(num_out, num_in), share)
    kept = coded(library, team, Packer(library, team).pack(weight))
    rows = rows_of(library, kept, num_out, num_in)
    # As bits: a zero's sign counts too.
    assert np.array_equal(rows.numpy().view(np.int32), weight.float().numpy().view(np.int32))


@pytest.mark.parametrize("name", VARIANT_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_the_plain_weight(name: str, shape: tuple[int, int]) -> None:
    library, (num_in, num_out) = library_of(name), shape
    team = Team(library, 2)
    weight = weight_like_a_model(num_out, num_in)
    weight[num_out // 2, num_in // 2] = 2.0  # a stray for certain
    weight[0, num_in - 1] = 2.0**-40
    plain = Packer(library, team).pack(weight)
    kept = coded(library, team, plain)
    assert num_strays(kept) >= 2
    x = torch.randn(max(ROWS), num_in, generator=torch.Generator().manual_seed(1)).bfloat16()
    whole = multiply(library, team, x.float(), kept)
    torch.testing.assert_close(
        whole, multiply(library, team, x.float(), plain), rtol=1e-5, atol=1e-5
    )
    for num_rows in ROWS:
        part = multiply(library, team, x[:num_rows].float(), kept)
        assert torch.equal(part, whole[:num_rows]), f"{num_rows} rows"


def test_without_strays_sums_are_the_same_to_the_bit() -> None:
    library = library_of(VARIANT_NAMES[0])
    team = Team(library, 2)
    weight = torch.where(torch.rand(96, 200) < 0.5, 0.5, -0.0371).bfloat16()
    plain = Packer(library, team).pack(weight)
    kept = coded(library, team, plain)
    assert num_strays(kept) == 0
    x = torch.randn(40, 200)
    for num_rows in (1, 8, 30, 40):
        expected = multiply(library, team, x[:num_rows], plain)
        assert torch.equal(multiply(library, team, x[:num_rows], kept), expected)


def test_weight_of_many_magnitudes_stays_as_it_is() -> None:
    library = library_of(VARIANT_NAMES[0])
    team = Team(library, 1)
    exponents = torch.randint(-60, 60, (64, 96))
    packed = Packer(library, team).pack((2.0**exponents).bfloat16())
    assert coded(library, team, packed) is packed


def test_fp32_and_empty_weights_stay_as_they_are() -> None:
    library = library_of(VARIANT_NAMES[0])
    team = Team(library, 1)
    for weight in (torch.randn(64, 96), torch.empty(0, 96, dtype=torch.bfloat16)):
        packed = Packer(library, team).pack(weight)
        assert coded(library, team, packed) is packed


def test_coding_takes_three_quarters_and_few_strays() -> None:
    library = library_of(VARIANT_NAMES[0])
    team = Team(library, 2)
    weight = weight_like_a_model(1024, 1024)
    packed = Packer(library, team).pack(weight)
    kept = coded(library, team, packed)
    assert kept.data.nbytes == 0.75 * packed.data.nbytes
    assert num_strays(kept) < weight.numel() / 8000


def test_packer_keeps_what_its_last_step_makes() -> None:
    library = library_of(VARIANT_NAMES[0])
    team = Team(library, 2)

    def finish(weight: PackedWeight) -> PackedWeight:
        return coded(library, team, weight)

    weight = weight_like_a_model(64, 48)
    kept = Packer(library, team, finish=finish).pack(weight, torch.ones(64), gated)
    assert kept.codes is not None and kept.bias is not None and kept.dtype == torch.bfloat16
