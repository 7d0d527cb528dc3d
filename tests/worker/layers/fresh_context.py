"""Three fresh sequences over a small cache, for tests of fused layers that write to it."""

import numpy as np
import torch

from tests.worker.interpreted import DEVICE
from worker.attention.base import BatchLayout, ForwardContext, LayerKVCache
from worker.attention.reference import ReferencePlan

LENS, BLOCK_SIZE = (3, 1, 5), 4
NUM_BLOCKS = 6  # the last one is not used


def fresh_context(cache: LayerKVCache) -> ForwardContext:
    """`cache`: of NUM_BLOCKS blocks of BLOCK_SIZE tokens."""
    lens = np.array(LENS, dtype=np.int32)
    tables = np.array([[4, 0], [2, 0], [1, 3]], dtype=np.int32)
    slots = [
        int(table[i // BLOCK_SIZE]) * BLOCK_SIZE + i % BLOCK_SIZE
        for table, length in zip(tables, LENS, strict=True)
        for i in range(length)
    ]
    return ForwardContext(
        positions=torch.tensor([7 + i for length in LENS for i in range(length)], device=DEVICE),
        slot_mappings=[torch.tensor(slots, device=DEVICE)],
        layouts=[BatchLayout(lens, lens, tables, BLOCK_SIZE, torch.float32, DEVICE)],
        kv_caches=[cache],
        backend=ReferencePlan,
    )
