"""A deterministic executor without a model, which distrusts the plans it is given.

It keeps the tokens themselves where a real runner keeps keys and values, and reads every context
back through the block tables. The next token is a pure function of that context: a wrong block
table, a stale cached block or a hole in the computed tokens changes the output or fails an
assertion.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from zlib import crc32

from worker.engine.sampling_params import SamplingParams
from worker.engine.step import (
    AdmittedSequence,
    ScheduledSequence,
    StepPlan,
    StepResult,
    TokenLogprobs,
)


def next_token(context: list[int], vocab_size: int, seed: int = 0) -> int:
    """The successor of `context`: what every correct engine must produce."""
    return crc32(array("I", context).tobytes(), seed & 0xFFFFFFFF) % vocab_size


def generate_alone(
    prompt: list[int], sampling: SamplingParams, vocab_size: int, max_total_tokens: int
) -> list[int]:
    """The output tokens of a request that has the engine for itself, by definition."""
    tokens, stop_ids = list(prompt), set(sampling.stop_token_ids)
    limit = min(len(prompt) + sampling.max_tokens, max_total_tokens)
    while len(tokens) < limit:
        token = next_token(tokens, vocab_size, sampling.seed)
        tokens.append(token)
        if token in stop_ids and len(tokens) - len(prompt) > sampling.min_tokens:
            break
    return tokens[len(prompt) :]


@dataclass
class _Slot:
    tokens: list[int]
    num_prompt: int
    sampling: SamplingParams
    num_prompt_logprobs_done: int
    block_ids: list[int] = field(default_factory=list)
    num_computed: int | None = None  # None: not scheduled yet


class FakeExecutor:
    """Implements worker.engine.executor.Executor. `is_checking=False` skips the checks, for
    timings.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 1 << 30,
        is_checking: bool = True,
    ) -> None:
        self.plans: list[StepPlan] = []
        self.computed_tokens = 0
        self.is_closed = False
        self.before_step: Callable[[StepPlan], None] | None = None  # may block or raise
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._is_checking = is_checking
        self._slots: dict[int, _Slot] = {}
        self._memory: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]

    def execute(self, plan: StepPlan) -> StepResult:
        assert not self.is_closed
        if self.before_step is not None:
            self.before_step(plan)
        if not self._is_checking:
            sampled = [s for s in plan.sequences if s.is_sampled]
            return StepResult([(s.start + s.slot) % self._vocab_size for s in sampled])
        self.plans.append(plan)
        self._check_budgets(plan)
        self._apply_membership(plan)
        self._write(plan)
        return self._sample(plan)

    def close(self) -> None:
        self.is_closed = True

    def _check_budgets(self, plan: StepPlan) -> None:
        assert plan.sequences, "an empty plan"
        assert len(plan.token_ids) == sum(s.num_tokens for s in plan.sequences)
        assert len(plan.token_ids) <= self._max_num_batched_tokens
        slots = [s.slot for s in plan.sequences]
        assert len(set(slots)) == len(slots), "a slot twice in one plan"
        self.computed_tokens += len(plan.token_ids)

    def _apply_membership(self, plan: StepPlan) -> None:
        for slot in plan.released:
            del self._slots[slot]  # KeyError: released twice or never admitted
        for admitted in plan.admitted:
            self._admit(admitted)
        assert len(self._slots) <= self._max_num_seqs

    def _admit(self, admitted: AdmittedSequence) -> None:
        assert admitted.slot not in self._slots, "slot reused without a release"
        assert 0 <= admitted.slot < self._max_num_seqs
        self._slots[admitted.slot] = _Slot(
            [*admitted.prompt_token_ids, *admitted.output_token_ids],
            len(admitted.prompt_token_ids),
            admitted.sampling,
            admitted.num_prompt_logprobs_done,
        )

    def _write(self, plan: StepPlan) -> None:
        offset = 0
        for sequence in plan.sequences:
            slot = self._slots[sequence.slot]
            slot.block_ids += sequence.new_block_ids
            self._check_sequence(slot, sequence)
            token_ids = plan.token_ids[offset : offset + sequence.num_tokens]
            offset += sequence.num_tokens
            end = sequence.start + sequence.num_tokens
            assert token_ids == slot.tokens[sequence.start : end], "wrong tokens to compute"
            for position, token_id in enumerate(token_ids, start=sequence.start):
                block_id = slot.block_ids[position // self._block_size]
                self._memory[block_id][position % self._block_size] = token_id
            slot.num_computed = end
        # After all writes: each context must still read back, or two sequences wrote one block.
        for sequence in plan.sequences:
            slot = self._slots[sequence.slot]
            end = sequence.start + sequence.num_tokens
            assert self._read(slot, end) == slot.tokens[:end], "the KV cache holds another context"

    def _check_sequence(self, slot: _Slot, sequence: ScheduledSequence) -> None:
        assert sequence.num_tokens > 0
        assert len(set(slot.block_ids)) == len(slot.block_ids), "a block twice in one table"
        end = sequence.start + sequence.num_tokens
        assert end <= len(slot.tokens), "tokens that do not exist"
        assert end <= len(slot.block_ids) * self._block_size, "no block for a token"
        if slot.num_computed is not None:
            assert sequence.start == slot.num_computed, "computed tokens are not contiguous"
        assert sequence.is_sampled == (end == len(slot.tokens))

    def _read(self, slot: _Slot, num_tokens: int) -> list[int | None]:
        blocks = slot.block_ids[: -(-num_tokens // self._block_size)]
        return [token for block_id in blocks for token in self._memory[block_id]][:num_tokens]

    def _sample(self, plan: StepPlan) -> StepResult:
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        for sequence in plan.sequences:
            slot = self._slots[sequence.slot]
            chunk = self._prompt_logprobs(slot, sequence)
            if chunk:
                prompt_logprobs[sequence.slot] = chunk
            if not sequence.is_sampled:
                continue
            token = next_token(slot.tokens, self._vocab_size, slot.sampling.seed)
            slot.tokens.append(token)
            token_ids.append(token)
            is_asked = slot.sampling.logprobs is not None
            logprobs.append(TokenLogprobs(token, -0.5, 1, [], []) if is_asked else None)
        return StepResult(token_ids, logprobs if any(logprobs) else None, prompt_logprobs)

    def _prompt_logprobs(self, slot: _Slot, sequence: ScheduledSequence) -> list[TokenLogprobs]:
        if slot.sampling.prompt_logprobs is None:
            return []
        first = max(sequence.start, slot.num_prompt_logprobs_done) + 1
        last = min(sequence.start + sequence.num_tokens, slot.num_prompt - 1)
        slot.num_prompt_logprobs_done = max(slot.num_prompt_logprobs_done, last)
        return [TokenLogprobs(slot.tokens[p], -float(p), 1, [], []) for p in range(first, last + 1)]
