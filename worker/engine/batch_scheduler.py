"""Decides which tokens the next step computes. There are no phases: every request has computed
tokens that catch up with its tokens, whether by prefill, a chunk, a prefix hit, decode or
recomputation.

Knows requests and block counts; knows no executor, no clock but the time it is given, and no
client. The Engine calls it, once before and once after each step.

A step may be planned while the one before it still runs (`schedule_behind`): as if that had brought
its tokens, whose ids only the device knows yet.

Requests one token behind go first (decode), with guesses at their next tokens where that pays
(`speculation`); prompts share what the step has room for beside them (`pace`, `prefill_share`).
When blocks run out, the least costly request is set back and recomputed later; so is a less urgent
one that is in the way of a more urgent one.
"""

from worker.engine.kv_cache_manager import KVCacheManager
from worker.engine.pace import Pace
from worker.engine.planned_step import PlannedStep
from worker.engine.preemption import in_the_way, least_costly
from worker.engine.prefill_share import share_budget
from worker.engine.prefix_in_flight import PrefixInFlight
from worker.engine.request import NO_SLOT, Request, Status
from worker.engine.speculation import Speculator
from worker.engine.stats import EngineStats
from worker.engine.step import AdmittedSequence, ScheduledSequence, StepPlan
from worker.engine.step_time import StepLoad
from worker.engine.waiting_queue import WaitingQueue

# Waiting requests looked at in one step: bounds the cost of a step under a long queue.
_WINDOW = 64
# Steps a request that finds no blocks is overtaken by smaller ones before it holds the queue up.
_MAX_BYPASSES = 64
# Tokens that a grammar brings at once and a decode takes at once; more are computed as a prompt is.
_MAX_RUN = 64
# Share of the pool that an admission leaves to the requests already running.
_KEPT_FREE_FRACTION = 0.01

_NO_BLOCKS: list[int] = []  # shared by all plans that append nothing; never changed


class BatchScheduler:
    """Owned by the engine thread.

    Invariant: a running request has a slot and blocks for its tokens, a waiting one has neither;
    while there are requests, a plan computes at least one token.
    """

    def __init__(
        self,
        kv_cache: KVCacheManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        stats: EngineStats,
        pace: Pace,
        speculator: Speculator | None = None,
    ) -> None:
        # Each running request must be able to get a token every step.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
        self.waiting = WaitingQueue()
        self.running: list[Request] = []
        self._kv_cache = kv_cache
        self._stats = stats
        self._pace = pace
        self._speculator = speculator
        self._max_num_batched_tokens = max_num_batched_tokens
        self._prefixes = PrefixInFlight(kv_cache.pool.block_size)
        self._free_slots = list(range(self.max_num_seqs - 1, -1, -1))
        kept_free = int(kv_cache.pool.num_blocks * _KEPT_FREE_FRACTION)
        self._num_kept_free = max(kv_cache.blocks_per_place, kept_free)
        self._released: list[int] = []
        self._last_context = 0  # tokens that the last step's decodes attended to
        self._num_dependent = 0  # running requests whose tokens the host must see
        self._has_dependent_head = False  # such a one found a step planned ahead, and waits on

    def add(self, request: Request) -> None:
        self._kv_cache.hash_prompt(request)
        self._kv_cache.find_cached(request)  # for an estimate of its work
        self.waiting.push(request)

    def remove(self, request: Request) -> None:
        """Take a request out, whatever its state; frees its slot and blocks."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
            self._leave_batch(request)
        elif request.status is Status.WAITING:
            self.waiting.remove(request)
        request.status = Status.FINISHED

    def pop_expired(self, now_s: float) -> list[Request]:
        """Requests whose deadline passed while they waited; they are out of the scheduler."""
        expired = self.waiting.pop_expired(now_s)
        for request in expired:
            request.status = Status.FINISHED
        return expired

    def backlog_tokens(self) -> int:
        """Tokens to compute before every request is one behind."""
        uncomputed = sum([request.num_uncomputed_tokens for request in self.running])
        return self.waiting.backlog_tokens + uncomputed - len(self.running)

    def schedule(self, number: int, now_s: float) -> PlannedStep | None:
        """The next step; None when there is nothing to compute."""
        self._has_dependent_head = False
        is_short_of_blocks = self._make_room()
        if not is_short_of_blocks:
            self._make_way()
        step = self._plan(number, now_s, may_enter=not is_short_of_blocks)
        assert step or not (self.running or self.waiting), "requests, but nothing to compute"
        return step

    def schedule_behind(
        self, current: PlannedStep, number: int, now_s: float
    ) -> PlannedStep | None:
        """The step after `current`, which still runs. None where it must be waited for: somebody
        needs to see its tokens, blocks are short, or nothing is left to compute.
        """
        if not current.is_predictable or self._has_dependent_head or self._is_contested():
            return None
        is_idle = not self.waiting
        if self._speculator and is_idle and self._speculator.is_hopeful(len(self.running)):
            return None  # guesses follow the newest tokens
        with current.assumed_ended() as ending:
            if ending:
                self.running = [request for request in self.running if request not in ending]
            try:
                if self._num_blocks_lacking() > 0:
                    return None
                return self._plan(number, now_s, may_enter=True, is_ahead=True)
            finally:
                self.running += sorted(ending, key=lambda request: request.order)

    def _plan(
        self, number: int, now_s: float, may_enter: bool, is_ahead: bool = False
    ) -> PlannedStep | None:
        plan = StepPlan(number, [], [])
        step = PlannedStep(plan)
        partial = self._plan_decodes(step, is_ahead)
        budget = self._max_num_batched_tokens - len(plan.token_ids)
        if may_enter:
            partial += self._entrants()
        if budget and partial:
            furthest = max(r.num_computed_tokens or r.num_hit_tokens for r in partial)
            budget = self._pace.prefill_tokens(step.load, furthest, budget)
            self._plan_prefills(step, partial, budget, now_s, is_ahead)
        if not plan.sequences:
            return None
        plan.released.extend(self._released)
        self._released.clear()
        step.is_predictable = step.is_predictable and not self._num_dependent
        return step

    def _is_contested(self) -> bool:
        """Whether a less urgent request runs than one that waits: it may have to make way."""
        head = self.waiting.head()
        return head is not None and any(r.priority > head.priority for r in self.running)

    def advance(self, step: PlannedStep, seconds: float) -> None:
        """Account for a step that took so long to compute; its requests have their new tokens.

        Those that have ended since it was planned are passed over.
        """
        finished = Status.FINISHED  # an enumeration's members are slow to look up
        for request, sequence in zip(step.requests, step.plan.sequences, strict=True):
            if request.status is finished:
                continue
            # Guesses that were wrong are not computed tokens, nor is what was just sampled.
            num_computed, num_tokens = sequence.start + sequence.num_tokens, len(request.token_ids)
            if num_computed >= num_tokens:
                num_computed = num_tokens - 1
            request.num_computed_tokens = num_computed
            if num_computed >= request.next_cache_at:
                self._prefixes.settle(request, self._kv_cache.store_computed(request))
        self._pace.observe(step.load, seconds)

    def note_drafts(self, step: PlannedStep, num_tokens: list[int]) -> None:
        """The step's sampled sequences have brought so many tokens each."""
        if self._speculator is None:
            return  # several tokens that a grammar forced
        drafted = [sequence.num_drafts for sequence in step.plan.sequences if sequence.is_sampled]
        for request, num_drafted, count in zip(step.sampled, drafted, num_tokens, strict=True):
            if num_drafted:
                self._speculator.note(request, num_drafted, count - 1)

    # --- decode -----------------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """Set requests back until each one left can have the block it needs; True if any was."""
        any_preempted = False
        while self._num_blocks_lacking() > 0:
            assert len(self.running) > 1, "a single request outgrew the pool"
            self._preempt(least_costly(self.running))
            any_preempted = True
        return any_preempted

    def _num_blocks_lacking(self) -> int:
        """For each running request to have the block it needs; none if not positive."""
        kv_cache = self._kv_cache
        num_free = kv_cache.pool.num_free
        if num_free >= len(self.running) * kv_cache.blocks_per_place:  # one place each at most
            return 0
        in_need = [r for r in self.running if r.num_computed_tokens == r.capacity]
        return sum(map(kv_cache.num_needed, in_need)) - num_free

    def _make_way(self) -> None:
        """Set less urgent requests back for the most urgent that waits, if that lets it in."""
        head = self.waiting.head()
        if head is None or self._prefixes.is_still_waiting(head):
            return
        has_slot = bool(self._free_slots)
        for request in in_the_way(
            head, self.running, self._kv_cache, has_slot, self._num_kept_free
        ):
            self._preempt(request)

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._leave_batch(request)
        request.status = Status.WAITING
        request.num_preemptions += 1
        self._stats.preemptions += 1
        self._kv_cache.find_cached(request)
        self.waiting.push(request)

    def _leave_batch(self, request: Request) -> None:
        self._num_dependent -= not request.is_self_contained
        self._prefixes.withdraw(request)
        self._kv_cache.free(request)
        self._released.append(request.slot)
        self._free_slots.append(request.slot)
        request.slot = NO_SLOT

    def _plan_decodes(self, step: PlannedStep, is_ahead: bool) -> list[Request]:
        """Plans the requests that are one token behind, or a few that came at once; returns the
        others.
        """
        token_ids, sequences, planned = step.plan.token_ids, step.plan.sequences, step.requests
        partial: list[Request] = []
        is_guessing = not is_ahead and self._is_guessing()
        context = 0
        for request in self.running:
            start = request.num_computed_tokens
            known = request.token_ids
            # Also a prompt whose window slides, where others still hold what it gave back.
            if start == request.capacity:
                self._kv_cache.extend(request)
            num_behind = len(known) - start
            if num_behind != 1 and not self._is_run(request, num_behind, len(token_ids)):
                partial.append(request)
                continue
            if num_behind == 1:
                token_ids.append(known[start])
            else:
                token_ids += known[start:]
            num_drafts = self._add_drafts(request, token_ids) if is_guessing else 0
            new_blocks = request.new_block_ids
            if new_blocks:
                request.new_block_ids = _NO_BLOCKS
            sequences.append(
                ScheduledSequence(
                    request.slot, start, num_behind + num_drafts, new_blocks, True, num_drafts
                )
            )
            planned.append(request)
            context += start
        step.sampled = planned.copy()
        num_decodes = len(sequences)
        num_drafts = len(token_ids) - num_decodes
        step.load = StepLoad(0, 0.0, num_decodes, context, num_drafts)
        step.is_predictable = not (is_guessing and any(s.num_drafts for s in sequences))
        self._last_context = context
        return partial

    def _is_run(self, request: Request, num_behind: int, num_planned: int) -> bool:
        """Whether these are output tokens that a grammar has brought at once, and there is room for
        all of them.
        """
        start = request.num_computed_tokens
        if start < request.num_prompt_tokens or num_behind > _MAX_RUN:
            return False
        if num_planned + num_behind + len(self.running) > self._max_num_batched_tokens:
            return False
        num_wanted = start + num_behind - request.capacity
        if num_wanted > 0:
            self._extend_spare(request, num_wanted)
        return start + num_behind <= request.capacity

    def _extend_spare(self, request: Request, num_tokens: int) -> None:
        """Blocks for so many tokens more, as far as nobody else may need them."""
        kv_cache = self._kv_cache
        num_kept = len(self.running) * kv_cache.blocks_per_place + self._num_kept_free
        kv_cache.extend_within(request, num_tokens, kv_cache.pool.num_free - num_kept)

    # --- guesses ----------------------------------------------------------------------------------

    def _is_guessing(self) -> bool:
        """Whether this step may verify guesses: it computes no prompt, and they can pay."""
        if self._speculator is None or self.waiting:
            return False
        decodes = StepLoad(num_decodes=len(self.running), decode_context=self._last_context)
        if not self._speculator.begin_step(decodes):
            return False
        return all(len(r.token_ids) - r.num_computed_tokens == 1 for r in self.running)

    def _add_drafts(self, request: Request, token_ids: list[int]) -> int:
        """Appends guesses at the request's next tokens, as far as it, the step and the blocks that
        nobody needs have room; returns how many.
        """
        assert self._speculator is not None
        num_tokens = request.num_tokens
        # Each running request has its token in the step, whether planned by now or not.
        room = self._max_num_batched_tokens - len(token_ids) - len(self.running)
        most = min(request.max_total_tokens - num_tokens - 1, room)
        if most <= 0:
            return 0
        drafts = self._speculator.draft(request, most)
        if not drafts:
            return 0
        num_wanted = num_tokens + len(drafts) - request.capacity
        if num_wanted > 0:
            self._extend_spare(request, num_wanted)
        drafts = drafts[: request.capacity - num_tokens]
        token_ids.extend(drafts)
        return len(drafts)

    # --- prefill and admission --------------------------------------------------------------------

    def _entrants(self) -> list[Request]:
        """Waiting requests that may be admitted in this step."""
        head = self.waiting.head()
        if head is None or not self._free_slots:
            return []
        if head.num_bypassed >= _MAX_BYPASSES:
            return [head]
        return self.waiting.window(_WINDOW)

    def _plan_prefills(
        self,
        step: PlannedStep,
        candidates: list[Request],
        budget: int,
        now_s: float,
        is_ahead: bool,
    ) -> None:
        plan = step.plan
        entered: list[Request] = []
        short: int | None = None  # the priority of one that lacks blocks

        def try_enter(request: Request) -> bool:
            nonlocal short
            if request.status is Status.RUNNING:
                return True
            if short is not None and request.priority > short:
                return False  # the more urgent one would set it back at once
            if is_ahead and not request.is_self_contained:
                self._has_dependent_head = True
                return False
            num_bypassed = request.num_bypassed
            if not self._try_admit(request, now_s):
                if request.num_bypassed > num_bypassed:
                    short = request.priority
                return False
            entered.append(request)
            return True

        block_size = self._kv_cache.pool.block_size
        shares = share_budget(candidates, budget, block_size, try_enter)
        for request in entered:
            plan.admitted.append(_admitted_sequence(request))
        for request, num_tokens in shares.items():
            start = request.num_computed_tokens
            end = min(start + num_tokens, request.capacity)
            blocks, request.new_block_ids = request.new_block_ids, _NO_BLOCKS
            step.load.num_prefill += end - start
            step.load.prefill_pairs += (end - start) * (start + end) / 2
            is_sampled = end == request.num_tokens
            plan.token_ids.extend(request.token_ids[start:end])
            plan.sequences.append(
                ScheduledSequence(request.slot, start, end - start, blocks, is_sampled)
            )
            step.requests.append(request)
            if is_sampled:
                step.sampled.append(request)

    def _try_admit(self, request: Request, now_s: float) -> bool:
        if not self._free_slots or self._prefixes.is_still_waiting(request):
            return False
        cached_blocks = self._kv_cache.find_cached(request)
        hashes = self._kv_cache.shareable_hashes(request)
        num_cached = request.num_hit_tokens // self._kv_cache.pool.block_size
        if self._prefixes.is_worth_waiting(request, hashes, num_cached):
            return False
        num_kept_free = self._num_kept_free if self.running else 0
        if not self._kv_cache.admit(request, cached_blocks, num_kept_free):
            request.num_bypassed += 1
            return False
        self._enter_batch(request, now_s)
        return True

    def _enter_batch(self, request: Request, now_s: float) -> None:
        self._num_dependent += not request.is_self_contained
        self.waiting.remove(request)
        self.running.append(request)
        self._prefixes.claim(request)
        request.status = Status.RUNNING
        request.slot = self._free_slots.pop()
        request.num_bypassed = 0
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now_s
            num_hit = min(request.num_computed_tokens, request.num_prompt_tokens)
            request.num_cached_tokens = num_hit
            self._stats.count_admission(request.num_prompt_tokens, request.num_tokens, num_hit)


def _admitted_sequence(request: Request) -> AdmittedSequence:
    num_prompt = request.num_prompt_tokens
    return AdmittedSequence(
        request.slot,
        request.token_ids[:num_prompt],
        request.token_ids[num_prompt:],
        request.sampling,
        len(request.prompt_logprobs),
    )
