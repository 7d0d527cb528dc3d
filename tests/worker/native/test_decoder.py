"""The native decoder as a whole: what it promises beyond parity, which tests/worker/models show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.models.harness import (
    driver_for,
    llama_config,
    make_checkpoint,
    make_runner,
    random_tokens,
)
from tests.worker.native.libraries import VARIANT_NAMES
from worker.engine.sampling_params import SamplingParams
from worker.models.decoder import Decoder
from worker.native.decoder import NativeDecoder
from worker.runner.input_batch import StepInputs
from worker.runner.model_runner import ModelRunner

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


def greedy_tokens(path: Path, num_sequences: int, **settings: Any) -> tuple[list[int], Tensor]:
    """The likeliest tokens as the step chooses them, and the logits of the same step."""
    runner = make_runner(path, **settings)
    driver = driver_for(runner)
    for slot in range(num_sequences):
        driver.admit(slot, random_tokens(5 + slot, seed=slot))
    plan = driver.plan(*((slot, 5 + slot) for slot in range(num_sequences)))
    logits = runner.compute_logits(plan).clone()
    assert runner._needs_largest_only
    return runner._forward_greedy(runner._inputs(plan))[1], logits


def change_head(path: Path, change: Callable[[Tensor], None]) -> None:
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors["lm_head.weight"])
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_sequences", [1, 6])
def test_a_greedy_step_chooses_the_largest_logit(
    path: Path, dtype: str, num_threads: int, num_sequences: int
) -> None:
    settings = {"dtype": dtype, "num_threads": num_threads}
    found, logits = greedy_tokens(path, num_sequences, **settings)
    assert found == logits.argmax(dim=1).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equal_logits_the_first_counts_and_nan_never(path: Path, dtype: str) -> None:
    settings = {"dtype": dtype, "num_threads": 2}
    best = greedy_tokens(path, 1, **settings)[0][0]

    def repeat_best(head: Tensor) -> None:
        head[[4, 37, 90]] = head[best].clone()
        head[[0, 3]] = torch.nan

    change_head(path, repeat_best)
    found, logits = greedy_tokens(path, 1, **settings)
    assert logits[0, [4, 37, 90]].eq(logits[0, best]).all()
    assert found == [min(4, best)]


def test_where_all_logits_are_nan_the_first_token_is_taken(path: Path) -> None:
    """Not one of the padding, whose logits are zeros."""
    change_head(path, lambda head: head.fill_(torch.nan))
    assert greedy_tokens(path, 2)[0] == [0, 0]


def test_a_greedy_runner_computes_no_logits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until somebody needs more of them than the largest; the tokens are the same."""

    def generated(runner: ModelRunner, **sampling: Any) -> list[int]:
        driver = driver_for(runner)
        prompt = random_tokens(9, seed=3)
        params = SamplingParams(max_tokens=20, temperature=0.0, **sampling)
        driver.admit(0, prompt, sampling=params)
        found = runner.execute(driver.plan((0, 9))).token_ids
        for _ in range(5):
            driver.tokens[0].append(found[-1])
            found += runner.execute(driver.plan((0, 1))).token_ids
        driver.release(0)
        runner.execute(driver.plan())
        return found

    runner = make_runner(path)
    num_logits = 0

    def count(inputs: StepInputs) -> tuple[Tensor, Tensor]:
        nonlocal num_logits
        num_logits += 1
        return ModelRunner._forward(runner, inputs)

    monkeypatch.setattr(runner, "_forward", count)
    found = generated(runner)
    assert num_logits == 0
    assert generated(runner, logprobs=2) == found
    assert num_logits == 6
    assert generated(runner) == found
    assert num_logits == 6


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
