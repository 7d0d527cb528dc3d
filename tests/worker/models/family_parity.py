"""One family's row of the parity table: a tiny model against transformers over every path.

Whole prompts, chunks, a cached prefix, decodes in a batch and mixtures of them; 64 greedy tokens
alone and split over ranks; the memory plan's count of weights against the tensors loaded.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.worker.models.family_table import TABLE
from tests.worker.models.harness import (
    driver_for,
    make_checkpoint,
    make_runner,
    random_tokens,
    reference_logits,
)
from tests.worker.simulated_group import run_ranks
from worker.native.decoder import NativeDecoder
from worker.parallel.group import SingleGroup, TPGroup
from worker.runner.model_runner import ModelRunner

TOLERANCE = 1e-4
NUM_GREEDY = 64


def assert_parity(path: Path, config: Any, tp_sizes: tuple[int, ...] = (1, 2)) -> float:
    """`config`: transformers' own. Returns the greatest difference of logits."""
    return assert_checkpoint_parity(path, make_checkpoint(path, config), tp_sizes)


def assert_expert_parallel_tokens(path: Path, model: Any, tp_sizes: tuple[int, ...]) -> None:
    """Greedy tokens, with experts that are whole on a rank each."""
    prompt = random_tokens(40, seed=11, vocab_size=model.config.vocab_size)
    for size in tp_sizes:
        _assert_greedy_tokens_match(model, path, prompt, size, enable_expert_parallel=True)


def assert_checkpoint_parity(path: Path, model: Any, tp_sizes: tuple[int, ...]) -> float:
    """`model`: what transformers, or a correction of it, makes of the checkpoint at `path`."""
    vocab_size = model.config.vocab_size
    differences = {
        native: _largest_difference(model, path, vocab_size, native) for native in (True, False)
    }
    difference = max(differences.values())
    assert difference < TOLERANCE, f"natively {differences[True]}, on torch {differences[False]}"
    prompt = random_tokens(40, seed=11, vocab_size=vocab_size)
    for size in tp_sizes:
        _assert_greedy_tokens_match(model, path, prompt, size)
    runner = make_runner(path)
    architecture = runner.model_config.architecture
    TABLE.add(architecture, _form(), difference, tp_sizes, _coverage(runner))
    return difference


def _coverage(runner: ModelRunner) -> str:
    """How much of the model the native kernels compute."""
    if not isinstance(runner._model, NativeDecoder):
        return "none"
    return ", ".join(f"not {part}" for part in runner._model.parts_on_torch) or "all"


def _form() -> str:
    """The running test's name for the row: what stands in its brackets, else its own words."""
    name = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].removesuffix(" (call)")
    case = name.partition("[")[2].removesuffix("]")
    return case or name.removeprefix("test_").replace("_", " ")


def bfloat16_similarity(path: Path, config: Any) -> float:
    """The cosine of a last token's logits to those in fp32, after a chunk and a decode."""
    model = make_checkpoint(path, config)
    runner = make_runner(path, dtype="bfloat16")
    driver = driver_for(runner)
    text = random_tokens(60, seed=5, vocab_size=config.vocab_size)
    driver.admit(0, text[:59])
    runner.compute_logits(driver.plan((0, 31)))
    runner.compute_logits(driver.plan((0, 28)))
    driver.tokens[0].append(text[59])
    logits = runner.compute_logits(driver.plan((0, 1)))[0]
    expected = reference_logits(model, text)[-1]
    return float(torch.nn.functional.cosine_similarity(logits, expected, dim=0))


def _largest_difference(model: Any, path: Path, vocab_size: int, is_native: bool) -> float:
    runner = make_runner(path, native_kernels=is_native)
    if not is_native:  # packed weights are padded
        assert runner.memory_plan.weight_bytes == loaded_weight_bytes(runner)
    assert runner.memory_plan.kv_cache_bytes == _cache_bytes(runner)
    driver = driver_for(runner)
    texts = {s: random_tokens(80 - 7 * s, seed=s, vocab_size=vocab_size) for s in range(4)}
    texts[3] = texts[0][:32] + texts[3]  # shares eight blocks with slot 0
    expected = {slot: reference_logits(model, text) for slot, text in texts.items()}
    differences: list[float] = []

    def check(*counts: tuple[int, int]) -> None:
        logits = runner.compute_logits(driver.plan(*counts))
        ended = [s for s, _ in counts if driver.computed[s] == len(driver.tokens[s])]
        assert len(logits) == len(ended)
        for row, slot in zip(logits, ended, strict=True):
            wanted = expected[slot][driver.computed[slot] - 1]
            differences.append(float((row - wanted).abs().max()))

    num_prompt = {slot: len(text) - 4 for slot, text in texts.items()}
    driver.admit(0, texts[0][: num_prompt[0]])
    check((0, num_prompt[0]))  # a whole prompt
    driver.admit(1, texts[1][: num_prompt[1]])
    driver.tokens[0].append(texts[0][num_prompt[0]])
    check((0, 1), (1, 33))  # a decode beside a first chunk
    driver.admit(2, texts[2][: num_prompt[2]])
    driver.admit(3, texts[3][: num_prompt[3]], cached_from=0, num_cached=32)
    check((1, num_prompt[1] - 33), (2, num_prompt[2]), (3, num_prompt[3] - 32))
    for _ in range(3):
        for slot in range(4):
            driver.tokens[slot].append(texts[slot][len(driver.tokens[slot])])
        check(*((slot, 1) for slot in range(4)))  # a batch of decodes
    return max(differences)


def _assert_greedy_tokens_match(
    model: Any, path: Path, prompt: list[int], size: int, **settings: Any
) -> None:
    """Greedy tokens are right if transformers continues the ones before each with the same."""

    def run(tp: TPGroup) -> list[int]:
        return _greedy(make_runner(path, tp, **settings), prompt)

    for tokens in [run(SingleGroup())] if size == 1 else run_ranks(size, run):
        wanted: Tensor = reference_logits(model, prompt + tokens).argmax(dim=-1)
        assert tokens == wanted[len(prompt) - 1 : -1].tolist(), f"at {size} ranks"


@torch.inference_mode()
def _greedy(runner: ModelRunner, prompt: list[int]) -> list[int]:
    driver = driver_for(runner)
    driver.admit(0, prompt)
    runner.compute_logits(driver.plan((0, 23)))
    count = len(prompt) - 23
    for _ in range(NUM_GREEDY):
        logits = runner.compute_logits(driver.plan((0, count)))
        driver.tokens[0].append(int(logits[0].argmax()))
        count = 1
    return driver.tokens[0][len(prompt) :]


def loaded_weight_bytes(runner: ModelRunner) -> int:
    assert runner._model is not None
    return sum(p.numel() * p.element_size() for p in runner._model.parameters())


def _cache_bytes(runner: ModelRunner) -> int:
    """Each tensor once: keys and values may be the same."""
    tensors = {id(t): t for cache in runner._kv_caches for t in (cache.k, cache.v)}
    return sum(t.numel() * t.element_size() for t in tensors.values())
