"""Zeros of the system's own making: right, aligned, and without a cost before their first use."""

import psutil
import pytest
import torch

from worker.layers.zeros import zeros

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (64, 16, 2, 32), (0, 4)])
def test_zeros_equal_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = zeros(shape, dtype, CPU)
    assert torch.equal(x, torch.zeros(shape, dtype=dtype))
    assert x.is_contiguous() and x.dtype == dtype
    assert x.data_ptr() % 64 == 0 or x.numel() == 0


def test_untouched_zeros_take_no_memory() -> None:
    before = psutil.Process().memory_info().rss
    x = zeros((256 << 20,), torch.float32, CPU)  # a GiB
    assert psutil.Process().memory_info().rss - before < 64 << 20
    x[12345] = 1.0
    assert x[12344:12347].tolist() == [0.0, 1.0, 0.0]
