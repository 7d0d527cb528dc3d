"""The native decoder as a whole: what it promises beyond parity, which tests/worker/models show."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.models.harness import (
    driver_for,
    llama_config,
    make_checkpoint,
    make_runner,
    random_tokens,
)
from tests.worker.native.libraries import VARIANT_NAMES
from worker.models.decoder import Decoder
from worker.native.decoder import NativeDecoder

pytestmark = pytest.mark.skipif(not VARIANT_NAMES, reason="no kernels for this machine")

DTYPES = ["float32", "bfloat16"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path, llama_config(hidden_size=48, intermediate_size=100))
    return tmp_path


def decode_logits(path: Path, num_sequences: int, **settings: Any) -> list[Tensor]:
    """Logits of the first sequence: after its prompt, in two chunks, and after each token."""
    runner = make_runner(path, **settings)
    driver = driver_for(runner)
    lengths = {slot: 40 + 5 * slot for slot in range(num_sequences)}
    texts = {slot: random_tokens(length, seed=slot) for slot, length in lengths.items()}
    for slot, text in texts.items():
        driver.admit(slot, text[:-4])
    found: list[Tensor] = []
    runner.compute_logits(driver.plan(*((slot, 23) for slot in texts)))
    found.append(runner.compute_logits(driver.plan(*((s, n - 27) for s, n in lengths.items())))[0])
    for i in range(4):
        for slot, text in texts.items():
            driver.tokens[slot].append(text[i - 4])
        found.append(runner.compute_logits(driver.plan(*((slot, 1) for slot in texts)))[0])
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_others", [1, 4, 7])
def test_numbers_do_not_depend_on_the_batch(path: Path, dtype: str, num_others: int) -> None:
    alone = decode_logits(path, 1, dtype=dtype)
    together = decode_logits(path, 1 + num_others, dtype=dtype)
    for mine, ours in zip(alone, together, strict=True):
        assert torch.equal(mine, ours)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_sequences", [1, 6])
def test_numbers_do_not_depend_on_the_threads(path: Path, dtype: str, num_sequences: int) -> None:
    before = torch.get_num_threads()
    try:
        one = decode_logits(path, num_sequences, dtype=dtype, num_threads=1)
        three = decode_logits(path, num_sequences, dtype=dtype, num_threads=3)
    finally:
        torch.set_num_threads(before)
    for mine, ours in zip(one, three, strict=True):
        assert torch.equal(mine, ours)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_do_not_depend_on_who_shares_the_prefix(tmp_path: Path, dtype: str) -> None:
    config = llama_config(max_position_embeddings=1024)
    make_checkpoint(tmp_path, config)
    runner = make_runner(tmp_path, dtype=dtype, num_blocks=400, max_num_batched_tokens=1024)
    prefix, num_shared = random_tokens(540, seed=0), 520
    texts = [prefix[:num_shared] + random_tokens(20 + 3 * slot, seed=slot) for slot in range(1, 4)]

    def found(slots: range) -> list[Tensor]:
        """Logits after one more token than the prompts, of the sequences in these slots."""
        driver = driver_for(runner)
        driver.admit(0, prefix)
        runner.compute_logits(driver.plan((0, len(prefix))))
        for slot in slots:
            driver.admit(slot, texts[slot - 1], cached_from=0, num_cached=num_shared)
        counts = [(slot, len(texts[slot - 1]) - num_shared) for slot in slots]
        runner.compute_logits(driver.plan(*counts))
        for slot in slots:
            driver.tokens[slot].append(slot)
        logits = runner.compute_logits(driver.plan(*((slot, 1) for slot in slots))).clone()
        for slot in (0, *slots):
            driver.release(slot)
        runner.execute(driver.plan())
        return list(logits)

    together = found(range(1, 4))
    for slot, logits in enumerate(together, start=1):
        assert torch.equal(found(range(slot, slot + 1))[0], logits)


def test_matrices_are_held_once(path: Path) -> None:
    """Packed ones replace the decoder's own; padding is all that is added."""
    own = make_runner(path, native_kernels=False)._model
    packed = make_runner(path)._model
    assert isinstance(packed, NativeDecoder)
    assert isinstance(own, Decoder)
    num_own = sum(p.numel() for p in own.parameters())
    num_packed = sum(p.numel() for p in packed.parameters())
    assert num_own <= num_packed < 1.5 * num_own


@pytest.mark.parametrize("settings", [{"native_kernels": False}, {"attention_backend": "gathered"}])
def test_torch_computes_where_it_is_asked_for(path: Path, settings: dict[str, Any]) -> None:
    assert isinstance(make_runner(path, **settings)._model, Decoder)


def test_half_precision_stays_on_torch(path: Path) -> None:
    assert isinstance(make_runner(path, dtype="float16")._model, Decoder)
