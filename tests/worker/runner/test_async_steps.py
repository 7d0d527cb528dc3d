"""Steps planned while others run bring the tokens of steps that follow one after another."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.models.harness import llama_config, make_checkpoint, make_runner
from tests.worker.models.test_families_classic import ROWS as CLASSIC_ROWS
from tests.worker.models.test_families_classic import make_config as classic_config
from tests.worker.models.test_families_moe import make_config as moe_config
from tests.worker.models.test_families_rms import make_config as rms_config
from tests.worker.runner.generation import generate_both, generate_on_ranks
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import AdmittedSequence
from worker.runner.drawing import choose_unseen
from worker.runner.logit_edits import SlotState
from worker.runner.sampler import Sampler

GREEDY = SamplingParams(12, temperature=0.0)
MIXED = (
    GREEDY,
    SamplingParams(9, temperature=0.8),
    SamplingParams(14, temperature=0.9, top_k=7, top_p=0.9),
    SamplingParams(30, temperature=0.0, stop_token_ids=tuple(range(0, 99, 4))),
    SamplingParams(11, temperature=1.0, min_p=0.05),
    SamplingParams(8, temperature=0.7, top_p=0.6),
)
ON_TORCH = {"native_kernels": False}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lambda: llama_config(), id="Llama"),
        pytest.param(lambda: rms_config("Gemma 2"), id="windows and soft caps"),
        pytest.param(lambda: moe_config("gpt-oss"), id="experts, windows and sinks"),
        pytest.param(lambda: moe_config("DeepSeek V3"), id="latent attention and experts"),
    ],
)
def test_families_bring_the_same_tokens(tmp_path: Path, config: Any) -> None:
    make_checkpoint(tmp_path, config())
    plain, ahead = generate_both(tmp_path, [GREEDY] * 5, **ON_TORCH)
    assert ahead == plain


def test_alibi_brings_the_same_tokens(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, classic_config(*CLASSIC_ROWS["MPT"][:2]))
    plain, ahead = generate_both(tmp_path, [GREEDY] * 4, **ON_TORCH)
    assert ahead == plain


@pytest.mark.parametrize("overrides", [ON_TORCH, {}])
def test_any_sampling_brings_the_same_tokens(tmp_path: Path, overrides: dict[str, Any]) -> None:
    make_checkpoint(tmp_path, llama_config())
    plain, ahead = generate_both(tmp_path, MIXED, **overrides)
    assert ahead == plain


def test_requests_that_the_host_must_see_bring_the_same_tokens(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    samplings = (
        SamplingParams(40, temperature=0.0),
        *MIXED[1:3],
        SamplingParams(7, temperature=0.0, presence_penalty=0.7),
        SamplingParams(7, temperature=0.5, logprobs=2),
        SamplingParams(7, temperature=0.0, prompt_logprobs=1),
    )
    plain, ahead = generate_both(tmp_path, samplings)
    assert ahead == plain


def test_ranks_know_each_others_unknown_tokens(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    alone, _ = generate_both(tmp_path, MIXED, **ON_TORCH)
    assert generate_on_ranks(tmp_path, MIXED, 2, **ON_TORCH) == alone


def test_only_a_device_beside_the_host_runs_ahead_unasked(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    assert not make_runner(tmp_path).is_asynchronous
    assert make_runner(tmp_path, async_scheduling=True).is_asynchronous


@pytest.mark.parametrize("sampling", MIXED)
def test_unseen_choices_are_the_samplers(sampling: SamplingParams) -> None:
    torch.manual_seed(3)
    logits = torch.randn(40, 700) * 3
    logits[3, 5] = torch.nan
    logits[4] = -torch.inf
    logits[5, 9] = torch.inf
    sampler = Sampler(700, 40, torch.device("cpu"))
    admitted = [AdmittedSequence(slot, [1], [2] * slot, sampling) for slot in range(40)]
    for sequence in admitted:
        sampler.admit(sequence)
    states = [SlotState(sequence, 700) for sequence in admitted]
    tokens = choose_unseen(logits, states).tolist()
    assert tokens == sampler.sample(logits, list(range(40)))[0]
    mixed = [SlotState(AdmittedSequence(i, [1], [], GREEDY), 700) for i in range(40)]
    mixed[::3] = states[::3]
    assert choose_unseen(logits, mixed).tolist()[::3] == tokens[::3]
