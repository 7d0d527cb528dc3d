"""Weights packed as they are read are the weights packed after loading, bit by bit."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.models.harness import llama_config, make_checkpoint
from tests.worker.models.test_families_classic import ROWS as CLASSIC_ROWS
from tests.worker.models.test_families_classic import make_config as make_classic_config
from tests.worker.models.test_families_moe import make_config as make_moe_config
from tests.worker.models.test_quantized import FLOAT8_FORMS, quantize_float8, quantize_mxfp4
from tests.worker.native.libraries import VARIANT_NAMES, library_of
from worker.layers.linear import TensorOptions
from worker.models.config import load_model_config
from worker.models.decoder import Decoder
from worker.models.loader import load_weights
from worker.models.registry import find_family
from worker.native.decoder import NativeDecoder
from worker.native.direct_packing import DirectPacking
from worker.native.library import Team
from worker.native.packing import (
    PANEL,
    Order,
    PackedRows,
    Packer,
    as_they_are,
    gated,
    gated_in_turns,
)
from worker.parallel.group import SingleGroup

pytestmark = pytest.mark.skipif(not VARIANT_NAMES, reason="no kernels for this machine")

CPU = torch.device("cpu")
DTYPE_LIST = [torch.float32, torch.bfloat16]
ORDERS = [as_they_are, gated, gated_in_turns]


class Rank(SingleGroup):
    """Packing needs no collectives."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


# --- rows -----------------------------------------------------------------------------------------


def expected_panels(weight: Tensor, order: Order) -> Tensor:
    """By the layout's definition: [panels, depth, 32], of bf16 two numbers of a column together."""
    columns, num_columns = order(len(weight))
    depth = -(-weight.shape[1] // 8) * 8
    whole = torch.zeros(num_columns, depth, dtype=weight.dtype)
    whole[torch.from_numpy(columns).long(), : weight.shape[1]] = weight
    together = 4 // weight.element_size()
    panels = whole.view(-1, PANEL, depth // together, together).transpose(1, 2)
    return panels.reshape(-1, depth, PANEL)


def random_weight(num_rows: int, num_numbers: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(num_rows * num_numbers)
    return torch.randn(num_rows, num_numbers, generator=generator).to(dtype)


@pytest.mark.parametrize("name", VARIANT_NAMES)
@pytest.mark.parametrize("dtype", DTYPE_LIST)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(2, 1), (70, 50), (96, 64), (330, 130)])
def test_packed_weight_is_as_the_layout_says(
    name: str, dtype: torch.dtype, order: Order, shape: tuple[int, int]
) -> None:
    library, weight = library_of(name), random_weight(*shape, dtype)
    expected = expected_panels(weight, order)
    forms = [weight, weight.t().contiguous().t(), random_weight(shape[0], 999, dtype)]
    forms[2][:, 7 : 7 + shape[1]] = weight
    forms[2] = forms[2][:, 7 : 7 + shape[1]]  # rows that are not aligned to anything
    for num_threads in (1, 2):
        packer = Packer(library, Team(library, num_threads))
        for form in forms:
            assert torch.equal(packer.pack(form, order=order).data, expected)


@pytest.mark.parametrize("name", VARIANT_NAMES)
@pytest.mark.parametrize("dtype", DTYPE_LIST)
@pytest.mark.parametrize("order", ORDERS)
def test_pieces_of_threads_make_the_whole(name: str, dtype: torch.dtype, order: Order) -> None:
    """Pieces that begin and end within a panel, also within a line of it."""
    library, weight = library_of(name), random_weight(300, 200, dtype)
    packed = PackedRows.of(weight, order)
    cuts = [0, 1, 33, 48, 64, 150, 151, 190, 300]

    def fill(piece: tuple[int, int]) -> None:
        packed.fill(library, weight[slice(*piece)], piece[0])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, pairwise(cuts)))
    assert torch.equal(packed.data, expected_panels(weight, order))


def test_values_of_another_type_are_not_packed() -> None:
    packed = PackedRows.of(random_weight(32, 8, torch.bfloat16), as_they_are)
    with pytest.raises(AssertionError, match=r"torch\.float32 for torch\.bfloat16"):
        packed.fill(library_of(VARIANT_NAMES[0]), torch.ones(32, 8))


# --- whole models ---------------------------------------------------------------------------------


def make_float8(path: Path) -> None:
    model = make_checkpoint(path, llama_config())
    quantize_float8(path, model, *FLOAT8_FORMS["FP8, a scale a block"])


def make_mxfp4(path: Path) -> None:
    config = make_moe_config("gpt-oss")
    config.hidden_size, config.intermediate_size = 64, 96
    quantize_mxfp4(path, make_checkpoint(path, config))


def classic(architecture: str) -> Callable[[Path], Any]:
    options = next(options for found, options, _ in CLASSIC_ROWS.values() if found == architecture)
    return lambda path: make_checkpoint(path, make_classic_config(architecture, options))


# Fused and transposed tensors, several groups, tied and own heads, experts, packed checkpoints.
CHECKPOINTS: dict[str, Callable[[Path], Any]] = {
    "llama": lambda path: make_checkpoint(path, llama_config()),
    "llama, tied": lambda path: make_checkpoint(path, llama_config(tie_word_embeddings=True)),
    "llama, odd sizes": lambda path: make_checkpoint(
        path, llama_config(hidden_size=40, intermediate_size=50, head_dim=10, vocab_size=101)
    ),
    "GPT-2": classic("GPT2LMHeadModel"),
    "Falcon": classic("FalconForCausalLM"),
    "OPT": classic("OPTForCausalLM"),
    "Mixtral": lambda path: make_checkpoint(path, make_moe_config("Mixtral")),
    "DeepSeek V3": lambda path: make_checkpoint(path, make_moe_config("DeepSeek V3")),
    "Qwen2 MoE": lambda path: make_checkpoint(path, make_moe_config("Qwen2 MoE")),
    "gpt-oss, MXFP4": make_mxfp4,
    "llama, FP8": make_float8,
}


def load(path: Path, rank: Rank, dtype: torch.dtype, is_direct: bool) -> NativeDecoder:
    config = load_model_config(str(path))
    family = find_family(config)
    spec = family.build_spec(config)
    decoder = Decoder(spec, 64, rank, TensorOptions(dtype, CPU))
    library = library_of(VARIANT_NAMES[0])
    packing = DirectPacking(library, decoder, rank) if is_direct else None
    weights = family.build_weight_map(spec)
    load_weights(decoder, str(path), weights, None, config.quantization, packing)
    packed = {} if packing is None else packing.packed()
    if packed:
        untouched = [p for p in decoder.parameters() if p.data_ptr() in packed]
        assert untouched and not any(p.any() for p in untouched)
    return NativeDecoder(decoder, library, rank, 1, 64, 16, packed)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("dtype", DTYPE_LIST)
def test_direct_packing_equals_packing_of_parameters(
    tmp_path: Path, checkpoint: str, dtype: torch.dtype
) -> None:
    CHECKPOINTS[checkpoint](tmp_path)
    for size in (1, 2, 4):
        for rank in range(size):
            ranks = [load(tmp_path, Rank(rank, size), dtype, is_direct) for is_direct in (0, 1)]
            expected, found = (native.parameters() for native in ranks)
            assert len(expected) == len(found) > 5
            for one, other in zip(expected, found, strict=True):
                assert torch.equal(one, other)
            assert sum(bool(x.any()) for x in found) > len(found) // 2


def test_slots_of_other_parameters_are_left_to_them(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    config = load_model_config(str(tmp_path))
    spec = find_family(config).build_spec(config)
    decoder = Decoder(spec, 64, SingleGroup(), TensorOptions(torch.float32, CPU))
    packing = DirectPacking(library_of(VARIANT_NAMES[0]), decoder, SingleGroup())
    for slot in (decoder.embedding.weight[3:5], decoder.norm.weight, torch.ones(4, 4)):
        assert not packing.write(slot, torch.ones(slot.shape))
    slot = decoder.lm_head.weight[3:5]
    assert packing.write(slot, torch.ones(slot.shape))
    assert not slot.any()


def test_packed_weight_that_nobody_takes_is_noticed() -> None:
    library = library_of(VARIANT_NAMES[0])
    weight = random_weight(32, 8, torch.float32)
    packer = Packer(
        library, Team(library, 1), {weight.data_ptr(): PackedRows.of(weight, as_they_are)}
    )
    with pytest.raises(AssertionError, match="1 packed weights are left"):
        packer.close()
    packer.pack(weight)
    packer.close()
