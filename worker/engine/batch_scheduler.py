"""Decides which tokens the next step computes. There are no phases: every request has computed
tokens that catch up with its tokens, whether by prefill, a chunk, a prefix hit, decode or
recomputation.

Knows requests and block counts; knows no executor, no clock but the time it is given, and no
client. The Engine calls it, once before and once after each step.

Requests one token behind go first (decode); what is left of the budget is shared between prompts
(`prefill_share`). When blocks run out, the least costly request is set back and recomputed later.
"""

from worker.engine.kv_cache_manager import KVCacheManager
from worker.engine.prefill_share import share_budget
from worker.engine.prefix_in_flight import PrefixInFlight
from worker.engine.request import NO_SLOT, Request, Status
from worker.engine.stats import EngineStats
from worker.engine.step import AdmittedSequence, ScheduledSequence, StepPlan
from worker.engine.waiting_queue import WaitingQueue

# Waiting requests looked at in one step: bounds the cost of a step under a long queue.
_WINDOW = 64
# Steps a request that finds no blocks is overtaken by smaller ones before it holds the queue up.
_MAX_BYPASSES = 64
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
    ) -> None:
        # Each running request must be able to get a token every step.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
        self.waiting = WaitingQueue()
        self.running: list[Request] = []
        self._kv_cache = kv_cache
        self._stats = stats
        self._max_num_batched_tokens = max_num_batched_tokens
        self._prefixes = PrefixInFlight(kv_cache.pool.block_size)
        self._free_slots = list(range(self.max_num_seqs - 1, -1, -1))
        self._num_kept_free = max(1, int(kv_cache.pool.num_blocks * _KEPT_FREE_FRACTION))
        self._released: list[int] = []
        self._planned: list[Request] = []  # in the order of the plan's sequences

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

    def schedule(self, step: int, now_s: float) -> StepPlan | None:
        """The next plan; None when there is nothing to compute."""
        is_short_of_blocks = self._make_room()
        plan = StepPlan(step, [], [])
        self._planned = []
        partial = self._plan_decodes(plan)
        budget = self._max_num_batched_tokens - len(plan.token_ids)
        if not is_short_of_blocks:
            partial += self._entrants()
        if budget and partial:
            self._plan_prefills(plan, partial, budget, now_s)
        if not plan.sequences:
            assert not self.running and not self.waiting, "requests, but nothing to compute"
            return None
        plan.released.extend(self._released)
        self._released.clear()
        return plan

    def advance(self, plan: StepPlan) -> list[Request]:
        """Account for a computed plan; returns the requests of its sampled sequences, in plan
        order.
        """
        sampled: list[Request] = []
        for request, sequence in zip(self._planned, plan.sequences, strict=True):
            request.num_computed_tokens += sequence.num_tokens
            if request.num_computed_tokens >= request.next_cache_at:
                self._prefixes.settle(request, self._kv_cache.store_computed(request))
            if sequence.is_sampled:
                sampled.append(request)
        return sampled

    # --- decode -----------------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """Set requests back until each one left can have the block it needs; True if any was."""
        pool, any_preempted = self._kv_cache.pool, False
        while pool.num_free < len(self.running):  # else no count is needed: one block each at most
            num_needed = sum(r.num_computed_tokens == r.capacity for r in self.running)
            if num_needed <= pool.num_free:
                break
            assert len(self.running) > 1, "a single request outgrew the pool"
            self._preempt(max(self.running, key=_preemption_order))
            any_preempted = True
        return any_preempted

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._leave_batch(request)
        request.status = Status.WAITING
        request.num_preemptions += 1
        self._stats.preemptions += 1
        self._kv_cache.find_cached(request)
        self.waiting.push(request)

    def _leave_batch(self, request: Request) -> None:
        self._prefixes.withdraw(request)
        self._kv_cache.free(request)
        self._released.append(request.slot)
        self._free_slots.append(request.slot)
        request.slot = NO_SLOT

    def _plan_decodes(self, plan: StepPlan) -> list[Request]:
        """Plans the requests that are one token behind; returns the others."""
        token_ids, sequences, planned = plan.token_ids, plan.sequences, self._planned
        partial: list[Request] = []
        for request in self.running:
            start = request.num_computed_tokens
            known = request.token_ids
            if len(known) - start != 1:
                partial.append(request)
                continue
            is_full = start == request.capacity
            new_blocks = self._kv_cache.extend(request) if is_full else _NO_BLOCKS
            token_ids.append(known[start])
            sequences.append(ScheduledSequence(request.slot, start, 1, new_blocks, True))
            planned.append(request)
        return partial

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
        self, plan: StepPlan, candidates: list[Request], budget: int, now_s: float
    ) -> None:
        entered: list[Request] = []

        def try_enter(request: Request) -> bool:
            if request.status is Status.RUNNING:
                return True
            if not self._try_admit(request, now_s):
                return False
            entered.append(request)
            return True

        shares = share_budget(candidates, budget, try_enter)
        for request in entered:
            plan.admitted.append(_admitted_sequence(request))
        fresh = set(entered)
        for request, num_tokens in shares.items():
            start = request.num_computed_tokens
            end = start + num_tokens
            blocks = list(request.block_ids) if request in fresh else _NO_BLOCKS
            is_sampled = end == request.num_tokens
            plan.token_ids.extend(request.token_ids[start:end])
            plan.sequences.append(
                ScheduledSequence(request.slot, start, num_tokens, blocks, is_sampled)
            )
            self._planned.append(request)

    def _try_admit(self, request: Request, now_s: float) -> bool:
        if not self._free_slots or self._prefixes.is_still_waiting(request):
            return False
        cached_blocks = self._kv_cache.find_cached(request)
        hashes = self._kv_cache.shareable_hashes(request)
        if self._prefixes.is_worth_waiting(request, hashes, len(cached_blocks)):
            return False
        num_kept_free = self._num_kept_free if self.running else 0
        if not self._kv_cache.admit(request, cached_blocks, num_kept_free):
            request.num_bypassed += 1
            return False
        self._enter_batch(request, now_s)
        return True

    def _enter_batch(self, request: Request, now_s: float) -> None:
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


def _preemption_order(request: Request) -> tuple[int, int, int]:
    """Largest first: least urgent, then fewest output tokens, then latest arrival."""
    priority, sequence = request.order
    return priority, -request.num_output_tokens, sequence
