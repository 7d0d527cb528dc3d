"""Log-probabilities of prompt tokens, gathered chunk by chunk while the prompt is computed.

The token at position p is scored by the logits of position p - 1. The first has no logits before
it, and what an earlier incarnation of the request reported is not reported again.
"""

from dataclasses import dataclass

from worker.engine.step import AdmittedSequence, ScheduledSequence


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """Consecutive rows of one step whose successors in the prompt are to be scored."""

    slot: int
    first_row: int  # in the step's tokens
    target_ids: list[int]  # one per row
    num_top: int


@dataclass(slots=True)
class _Prompt:
    token_ids: list[int]
    num_top: int
    num_done: int  # targets scored: prompt positions 1 .. num_done


class PromptScoring:
    """The prompts that asked for log-probabilities, by slot. Owned by the ModelRunner."""

    def __init__(self) -> None:
        self._prompts: dict[int, _Prompt] = {}

    def admit(self, sequence: AdmittedSequence) -> None:
        num_top = sequence.sampling.prompt_logprobs
        if num_top is not None:
            done = sequence.num_prompt_logprobs_done
            self._prompts[sequence.slot] = _Prompt(sequence.prompt_token_ids, num_top, done)

    def release(self, slot: int) -> None:
        self._prompts.pop(slot, None)

    def take(self, sequences: list[ScheduledSequence], first_rows: list[int]) -> list[ScoredChunk]:
        """What this step's tokens let be scored; counted as done."""
        if not self._prompts:
            return []
        chunks: list[ScoredChunk] = []
        for sequence, first_row in zip(sequences, first_rows, strict=True):
            prompt = self._prompts.get(sequence.slot)
            if prompt is None:
                continue
            first = max(sequence.start, prompt.num_done)
            stop = min(sequence.start + sequence.num_tokens, len(prompt.token_ids) - 1)
            if first < stop:
                targets = prompt.token_ids[first + 1 : stop + 1]
                row = first_row + first - sequence.start
                chunks.append(ScoredChunk(sequence.slot, row, targets, prompt.num_top))
                prompt.num_done = stop
        return chunks
