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

REFRAIN = 23  # places after which a repetitive model takes up something new


def next_token(
    context: list[int], vocab_size: int, seed: int = 0, memory: int | None = None
) -> int:
    """The successor of `context`: what every correct engine must produce.

    With `memory` it depends on that many last tokens only, and on the part of the text: such a
    model falls into repetitions, and leaves them again.
    """
    if memory is not None:
        context = [*context[-memory:], len(context) // REFRAIN]
    return crc32(array("I", context).tobytes(), seed & 0xFFFFFFFF) % vocab_size


def generate_alone(
    prompt: list[int],
    sampling: SamplingParams,
    vocab_size: int,
    max_total_tokens: int,
    memory: int | None = None,
) -> list[int]:
    """The output tokens of a request that has the engine for itself, by definition."""
    tokens, stop_ids = list(prompt), set(sampling.stop_token_ids)
    limit = min(len(prompt) + sampling.max_tokens, max_total_tokens)
    while len(tokens) < limit:
        token = next_token(tokens, vocab_size, sampling.seed, memory)
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
    drafts: list[int] = field(default_factory=list)  # of this step
    late_at: int = -1  # tokens it had when it last got none


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
        windows: tuple[int | None, ...] = (None,),
        memory: int | None = None,
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
        # Of each group: tokens that one sees, itself included; what is before may be gone.
        self._windows = windows
        self._memory_len = memory  # of the model: see next_token
        self._slots: dict[int, _Slot] = {}
        # What each block holds: of which group, and its tokens.
        self._memory: list[list[tuple[int, int] | None]] = [
            [None] * block_size for _ in range(num_blocks * len(windows))
        ]

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
            end = sequence.start + sequence.num_tokens - sequence.num_drafts
            num_known = end - sequence.start
            assert token_ids[:num_known] == slot.tokens[sequence.start : end], "wrong tokens"
            slot.drafts = token_ids[num_known:]
            for group in range(len(self._windows)):
                table = self._table(slot, group)
                for position, token_id in enumerate(token_ids, start=sequence.start):
                    place, i = divmod(position, self._block_size)
                    self._memory[table[place]][i] = group, token_id
            slot.num_computed = end
        # After all writes: each context must still read back, or two sequences wrote one block.
        for sequence in plan.sequences:
            slot = self._slots[sequence.slot]
            end = sequence.start + sequence.num_tokens
            for group in range(len(self._windows)):
                first = self._first_seen(sequence.start, group)
                seen = self._read(slot, first, end, group)
                known = slot.tokens[first : end - sequence.num_drafts] + slot.drafts
                assert seen == [(group, token) for token in known], "the cache holds another text"

    def _check_sequence(self, slot: _Slot, sequence: ScheduledSequence) -> None:
        assert sequence.num_tokens > 0
        num_groups = len(self._windows)
        assert len(slot.block_ids) % num_groups == 0, "a place without a block of every group"
        held: list[int] = []
        for group in range(num_groups):
            first = self._first_seen(sequence.start, group) // self._block_size
            held += self._table(slot, group)[first:]
        assert len(set(held)) == len(held), "a block twice in one table"
        end = sequence.start + sequence.num_tokens
        num_known = end - sequence.num_drafts
        assert num_known <= len(slot.tokens), "tokens that do not exist"
        num_places = len(slot.block_ids) // num_groups
        assert end <= num_places * self._block_size, "no block for a token"
        if slot.num_computed is not None:
            assert sequence.start == slot.num_computed, "computed tokens are not contiguous"
        assert sequence.is_sampled == (num_known == len(slot.tokens))
        assert sequence.is_sampled or not sequence.num_drafts, "guesses at known tokens"
        assert sequence.num_drafts < sequence.num_tokens

    def _table(self, slot: _Slot, group: int) -> list[int]:
        return slot.block_ids[group :: len(self._windows)]

    def _first_seen(self, position: int, group: int) -> int:
        """The first token that the one at `position` sees in this group's layers."""
        window = self._windows[group]
        return 0 if window is None else max(0, position - window + 1)

    def _read(self, slot: _Slot, start: int, stop: int, group: int) -> list[tuple[int, int] | None]:
        size = self._block_size
        blocks = self._table(slot, group)[start // size : -(-stop // size)]
        tokens = [token for block_id in blocks for token in self._memory[block_id]]
        return tokens[start % size : start % size + stop - start]

    def _sample(self, plan: StepPlan) -> StepResult:
        token_ids: list[int] = []
        num_tokens: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        for sequence in plan.sequences:
            slot = self._slots[sequence.slot]
            chunk = self._prompt_logprobs(slot, sequence)
            if chunk:
                prompt_logprobs[sequence.slot] = chunk
            if not sequence.is_sampled:
                continue
            sampled = self._sample_one(slot)
            token_ids += sampled
            num_tokens.append(len(sampled))
            is_asked = slot.sampling.logprobs is not None
            logprobs += [
                TokenLogprobs(token, -0.5, 1, [], []) if is_asked else None for token in sampled
            ]
        has_drafts = any(sequence.num_drafts for sequence in plan.sequences)
        is_uneven = any(count != 1 for count in num_tokens)
        return StepResult(
            token_ids,
            logprobs if any(logprobs) else None,
            prompt_logprobs,
            num_tokens=num_tokens if has_drafts or is_uneven else None,
        )

    def _sample_one(self, slot: _Slot) -> list[int]:
        """The next token, and one for each guess that was right."""
        if slot.sampling.grammar is not None:
            return self._sample_constrained(slot)
        sampled: list[int] = []
        for draft in [*slot.drafts, None]:
            token = next_token(slot.tokens, self._vocab_size, slot.sampling.seed, self._memory_len)
            slot.tokens.append(token)
            sampled.append(token)
            if token != draft:
                break
        slot.num_computed = len(slot.tokens) - 1
        return sampled

    def _sample_constrained(self, slot: _Slot) -> list[int]:
        """As under a grammar: now and then nothing, now and then several tokens at once."""
        assert not slot.drafts, "guesses under a grammar"
        num_known = len(slot.tokens)
        if num_known % 5 == 0 and slot.late_at != num_known:
            slot.late_at, slot.num_computed = num_known, num_known - 1
            return []
        for _ in range(1 + num_known % 7):
            token = next_token(slot.tokens, self._vocab_size, slot.sampling.seed, self._memory_len)
            slot.tokens.append(token)
        slot.num_computed = num_known  # what came with the first is yet to be computed
        return slot.tokens[num_known:]

    def _prompt_logprobs(self, slot: _Slot, sequence: ScheduledSequence) -> list[TokenLogprobs]:
        if slot.sampling.prompt_logprobs is None:
            return []
        first = max(sequence.start, slot.num_prompt_logprobs_done) + 1
        last = min(sequence.start + sequence.num_tokens, slot.num_prompt - 1)
        slot.num_prompt_logprobs_done = max(slot.num_prompt_logprobs_done, last)
        return [TokenLogprobs(slot.tokens[p], -float(p), 1, [], []) for p in range(first, last + 1)]
