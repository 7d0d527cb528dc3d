"""Whole models on Triton kernels, attention and fused layers, against transformers.

In the interpreter one family of each kind of layer; on a card, under the `gpu` marker, all of them,
and in bfloat16 too.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.interpreted import DEVICE, HAS_GPU, runs_kernels
from tests.worker.models import test_families_classic as classic
from tests.worker.models import test_families_moe as moe
from tests.worker.models import test_families_rms as rms
from tests.worker.models.harness import (
    driver_for,
    make_checkpoint,
    make_runner,
    random_tokens,
    reference_logits,
)

pytestmark = runs_kernels

TOLERANCE = 1e-4
# What each brings: group sizes and rotations aside, a kind of attention, norm, order or experts.
INTERPRETED = (
    "MPT, clipped and scaled",  # ALiBi, clip
    "GPT-NeoX",  # parallel layers, a part rotated, layer norms
    "GPT-J",  # rotation of pairs
    "OPT 350m",  # the norm of the sum
    "Gemma 2",  # windows, soft-caps, norms with an offset around
    "OLMo 2",  # norms after, RMS over all heads
    "Granite",  # multipliers
    "StableLM 2 12B",  # layer norms of each head
    "Qwen3 MoE",  # RMS of heads, experts
    "DeepSeek V2 Lite",  # latents
    "gpt-oss",  # sinks, clamped experts with biases
)


def make_config(row: str) -> Any:
    if row in classic.ROWS:
        architecture, options, _ = classic.ROWS[row]
        return classic.make_config(architecture, options)
    return rms.make_config(row) if row in rms.ROWS else moe.make_config(row)


ROWS = [*classic.ROWS, *rms.ROWS, *moe.ROWS] if HAS_GPU else INTERPRETED


@pytest.mark.parametrize("row", ROWS)
def test_steps_match_transformers(tmp_path: Path, row: str) -> None:
    """A chunk, its rest beside another's whole prompt, and decodes of both."""
    config = make_config(row)
    model = make_checkpoint(tmp_path, config)
    runner = make_runner(tmp_path, device=DEVICE.type, attention_backend="triton")
    driver = driver_for(runner)
    texts = [random_tokens(30, 1, config.vocab_size), random_tokens(12, 2, config.vocab_size)]
    expected = [reference_logits(model, text) for text in texts]
    driver.admit(0, texts[0][:28])
    driver.admit(1, texts[1][:10])
    steps = [((0, 13),), ((0, 15), (1, 10)), ((1, 1), (0, 1)), ((0, 1), (1, 1))]
    for counts in steps:
        for slot, count in counts:
            if count == 1:
                driver.tokens[slot].append(texts[slot][len(driver.tokens[slot])])
        logits = runner.compute_logits(driver.plan(*counts)).cpu()
        ended = [slot for slot, _ in counts if driver.computed[slot] == len(driver.tokens[slot])]
        for found, slot in zip(logits, ended, strict=True):
            wanted = expected[slot][driver.computed[slot] - 1]
            assert float((found - wanted).abs().max()) < TOLERANCE


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.parametrize("row", ["MPT", "Gemma 2", "Qwen3 MoE", "DeepSeek V2 Lite", "gpt-oss"])
def test_bfloat16_stays_close_to_float32(tmp_path: Path, row: str) -> None:
    config = make_config(row)
    model = make_checkpoint(tmp_path, config)
    runner = make_runner(tmp_path, device="cuda", dtype="bfloat16", attention_backend="triton")
    driver = driver_for(runner)
    text = random_tokens(60, 5, config.vocab_size)
    driver.admit(0, text[:59])
    runner.compute_logits(driver.plan((0, 31)))
    runner.compute_logits(driver.plan((0, 28)))
    driver.tokens[0].append(text[59])
    logits = runner.compute_logits(driver.plan((0, 1)))[0].cpu()
    similarity = torch.nn.functional.cosine_similarity(
        logits, reference_logits(model, text)[-1], dim=0
    )
    assert similarity > 0.98


def test_the_kernels_are_what_runs(tmp_path: Path) -> None:
    """Not the torch operators beside which they are tested."""
    make_checkpoint(tmp_path, make_config("Qwen3 MoE"))
    runner = make_runner(tmp_path, device=DEVICE.type, attention_backend="triton")
    assert runner._model is not None
    modules = {type(module).__name__: module for module in runner._model.modules()}
    for name in ("RMSNorm", "Attention"):
        assert modules[name]._kernels is not None
    assert modules["Experts"]._fused is not None
