"""Steps under way: their tokens reach the states whose they are, once they are known."""

import torch

from worker.engine.sampling_params import SamplingParams
from worker.engine.step import UNKNOWN_TOKEN, AdmittedSequence
from worker.runner.logit_edits import SlotState
from worker.runner.pending_step import PendingStep

CPU = torch.device("cpu")


def state(output: list[int]) -> SlotState:
    return SlotState(AdmittedSequence(0, [1], output, SamplingParams(9)), 100)


def test_positions_go_on_while_tokens_are_unknown_and_tokens_come_in_order() -> None:
    first, second = state([5]), state([])
    older = PendingStep(CPU, torch.tensor([7, 8]), [first, second])
    newer = PendingStep(CPU, torch.tensor([9]), [first])
    assert (first.position, second.position) == (3, 1)
    assert first.output_ids == [5, UNKNOWN_TOKEN, UNKNOWN_TOKEN]
    assert older.result(1.0).token_ids == [7, 8]
    assert first.output_ids == [5, 7, UNKNOWN_TOKEN]
    assert newer.result(1.0).token_ids == [9]
    assert (first.output_ids, second.output_ids) == ([5, 7, 9], [8])


def test_a_step_of_chunks_brings_nothing() -> None:
    assert PendingStep(CPU).result(1.0).token_ids == []
