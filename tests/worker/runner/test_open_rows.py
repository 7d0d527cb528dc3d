"""Rows that decide for themselves, against the sampler's own way on a CPU.

In the interpreter without a GPU.
"""

from tests.worker.interpreted import DEVICE, runs_kernels

# isort: split
import pytest
import torch

from worker.engine.sampling_params import SamplingParams
from worker.engine.step import AdmittedSequence
from worker.runner import drawing
from worker.runner.drawing import Rows, apply_temperature, draw
from worker.runner.logit_edits import SlotState
from worker.runner.logits import finite_logits
from worker.runner.noise import noise_keys
from worker.runner.open_rows import decide_open_rows
from worker.runner.truncation import Candidates, find_candidates

pytestmark = runs_kernels

VOCAB_SIZE = 5000


def make_rows(samplings: list[SamplingParams], scale: float) -> Rows:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn((len(samplings), VOCAB_SIZE), generator=generator) * scale
    logits = logits.bfloat16().float()  # so that some are equal
    logits[0, 17] = -torch.inf
    states = [
        SlotState(AdmittedSequence(i, [1], [3] * i, sampling), VOCAB_SIZE)
        for i, sampling in enumerate(samplings)
    ]
    x = finite_logits(logits)
    return Rows(x, apply_temperature(x, states), states)


def decided(rows: Rows, found: Candidates) -> list[int]:
    tokens = torch.full((len(rows.states),), -1, dtype=torch.int64, device=DEVICE)
    on_device = Candidates(
        found.logits.to(DEVICE),
        found.token_ids.to(DEVICE),
        found.threshold.to(DEVICE),
        found.is_known.to(DEVICE),
        found.is_complete.to(DEVICE),
    )
    keys = noise_keys(
        [s.params.seed for s in rows.states], [s.position for s in rows.states], DEVICE
    )
    params = [state.truncation for state in rows.states]
    decide_open_rows(tokens, rows.x.to(DEVICE), rows.row_max.to(DEVICE), on_device, keys, params)
    return tokens.cpu().tolist()


SAMPLINGS = [
    SamplingParams(9, 0.7, top_p=0.9, seed=1),
    SamplingParams(9, 1.0, top_p=0.5, seed=2),
    SamplingParams(9, 1.3, top_p=0.99, seed=3),
    SamplingParams(9, 1.0, top_k=3000, seed=4),
    SamplingParams(9, 1.0, top_k=2500, top_p=0.8, seed=5),
    SamplingParams(9, 0.9, top_k=4, seed=6),
    SamplingParams(9, 1.0, top_p=0.95, min_p=0.01, seed=7),
    SamplingParams(9, 0.5, top_k=900, top_p=0.7, min_p=0.001, seed=8),
]


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_rows_decide_as_the_host_would(scale: float) -> None:
    rows = make_rows(SAMPLINGS, scale)
    found = find_candidates(rows.x, rows.row_max, [state.truncation for state in rows.states])
    expected = draw(rows).tolist()
    assert not found.is_complete.all(), "nothing to decide"
    for token, wanted, is_complete in zip(
        decided(rows, found), expected, found.is_complete.tolist(), strict=True
    ):
        assert token == (-1 if is_complete else wanted)


def test_unknown_thresholds_are_searched_and_known_ones_taken() -> None:
    rows = make_rows(SAMPLINGS, 1.0)
    found = find_candidates(rows.x, rows.row_max, [state.truncation for state in rows.states])
    nothing = torch.zeros(len(SAMPLINGS), dtype=torch.bool)
    none_known = Candidates(found.logits, found.token_ids, found.threshold, nothing, nothing)
    assert decided(rows, none_known) == draw(rows).tolist()
    only_the_largest = Candidates(found.logits, found.token_ids, rows.row_max, ~nothing, nothing)
    assert decided(rows, only_the_largest) == rows.x.argmax(dim=1).tolist()


def test_draws_without_the_host_are_its_own() -> None:
    rows = make_rows([*SAMPLINGS, SamplingParams(9, 0.8, seed=9)], 1.0)
    expected = draw(rows).tolist()
    on_device = Rows(rows.x.to(DEVICE), rows.row_max.to(DEVICE), rows.states)
    assert drawing.draw_unseen(on_device).tolist() == expected
