"""The engine: requests in, one step at a time, outputs out. Pure and synchronous.

Joins the BatchScheduler's decisions to the executor's results and ends requests. Knows no threads
and no wire; EngineLoop drives it in production, tests drive it directly.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterable

from protos.block_hash import BlockHash, root_hash
from worker.config import EngineConfig
from worker.engine.batch_scheduler import BatchScheduler
from worker.engine.block_pool import BlockPool, CacheEvents
from worker.engine.executor import Executor
from worker.engine.kv_cache_manager import KVCacheManager
from worker.engine.pace import Pace
from worker.engine.planned_step import PlannedStep
from worker.engine.request import (
    ErrorCode,
    FinishReason,
    NewRequest,
    Request,
    RequestError,
    RequestOutput,
    Status,
)
from worker.engine.speculation import Speculator
from worker.engine.stats import EngineStats
from worker.engine.step import StepResult, TokenLogprobs
from worker.engine.validation import max_total_tokens, validate
from worker.errors import InvalidRequest
from worker.report import EngineCounters, ReplicaLoad

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0


class Engine:
    """Owned by one thread, the engine thread; nothing here may be called from another.

    Invariant: every request added ends with exactly one output that has a finish_reason; when no
    request is live, every block is free.
    """

    max_steps_under_way = 1  # until the first of them is accounted for

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.steps = 0
        self._executor = executor
        self._clock = clock
        self._stats = EngineStats()
        num_groups = len(config.windows)
        self._pool = BlockPool(
            config.num_blocks * num_groups,
            config.block_size,
            config.enable_prefix_caching,
            num_groups,
        )
        pace = Pace(_seconds(config.target_itl_ms), config.block_size)
        speculator = None
        if config.speculation is not None:
            speculator = Speculator(config.speculation, pace, self._stats, config.max_num_seqs)
        self._scheduler = BatchScheduler(
            KVCacheManager(
                self._pool,
                config.windows,
                config.max_num_batched_tokens * self.max_steps_under_way,
            ),
            config.max_num_seqs,
            config.max_num_batched_tokens,
            self._stats,
            pace,
            speculator,
        )
        self._requests: dict[Hashable, dict[int, Request]] = {}
        self._num_requests = 0
        self._num_added = 0
        self._outputs: list[RequestOutput] = []  # made between steps; the next step returns them

    @property
    def has_work(self) -> bool:
        return self._num_requests > 0

    def add(self, new: NewRequest) -> None:
        """Take a request in. One that breaks a rule becomes an error output and harms nobody."""
        live = self._requests.get(new.owner, {}).get(new.handle)
        if live is not None:
            taken = _invalid(f"handle {new.handle} stands for another live request", "handle")
            self._end(live, "error", error=taken)
            return
        refusal = self._refusal(new)
        if refusal is not None:
            self.refuse(new, refusal)
            return
        self._num_added += 1
        limit = max_total_tokens(new, self.config)
        request = Request(new, limit, self._num_added, root_hash(new.cache_salt))
        logger.debug("added request_id=%s traceparent=%s", new.request_id, new.traceparent)
        self._requests.setdefault(new.owner, {})[new.handle] = request
        self._num_requests += 1
        reason = request.finish_reason() if new.emitted_token_ids else None
        if reason is not None:  # what was emitted elsewhere is all of it
            request.status = Status.FINISHED
            self._end(request, reason)
        else:
            self._scheduler.add(request)

    def refuse(self, new: NewRequest, error: RequestError) -> None:
        """Answer a request that was never taken in."""
        self._stats.count_finish("error")
        self._outputs.append(
            RequestOutput(new.owner, new.handle, new.request_id, [], "error", error=error)
        )

    def abort(self, owner: Hashable, handles: Iterable[int]) -> None:
        """Ends these at once; handles that have ended already are passed over."""
        live = self._requests.get(owner, {})
        for request in [live[handle] for handle in handles if handle in live]:
            self._end(request, "abort")

    def abort_owner(self, owner: Hashable) -> None:
        """Ends everything an owner has submitted."""
        for request in list(self._requests.get(owner, {}).values()):
            self._end(request, "abort")

    def fail_all(self, error: RequestError) -> None:
        """Ends every live request with an error."""
        for live in list(self._requests.values()):
            for request in list(live.values()):
                self._end(request, "error", error=error)

    def step(self) -> list[RequestOutput]:
        """Compute one plan, if there is something to compute.

        Raises: whatever the executor raises; no request has been changed then, and `fail_all` still
        works.
        """
        started_s = self._clock()
        self._end_expired(started_s)
        step = self._scheduler.schedule(self.steps, started_s)
        if step is not None:
            result = self._executor.execute(step.plan)
            self.steps += 1
            now_s = self._clock()
            self._update(step, result, now_s, now_s - started_s)
        return self.take_outputs()

    def take_outputs(self) -> list[RequestOutput]:
        """Outputs made since the last step or call, without computing anything."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def load(self) -> ReplicaLoad:
        return ReplicaLoad(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            backlog_tokens=self._scheduler.backlog_tokens(),
            num_blocks=self.config.num_blocks,
            num_free_blocks=self._pool.num_free // len(self.config.windows),
            steps=self.steps,
            max_num_seqs=self._scheduler.max_num_seqs,
        )

    def counters(self) -> EngineCounters:
        return self._stats.counters()

    def drain_cache_events(self) -> CacheEvents | None:
        """What entered and left the prefix cache since the last call; None: nothing."""
        return self._pool.drain_events()

    def cached_hashes(self) -> list[BlockHash]:
        """The whole prefix cache."""
        return self._pool.cached_hashes()

    def check_integrity(self) -> None:
        """Walks the block pool. Raises: AssertionError."""
        self._pool.check_integrity()

    def close(self) -> None:
        """Releases the executor. Nothing may be called afterwards."""
        self._executor.close()

    def _refusal(self, new: NewRequest) -> RequestError | None:
        try:
            validate(new, self.config)
        except InvalidRequest as error:
            return _invalid(str(error), error.field)
        if len(self._scheduler.waiting) >= self.config.max_num_waiting:
            return RequestError(
                ErrorCode.RESOURCE_EXHAUSTED,
                f"{self.config.max_num_waiting} requests are waiting already",
                retry_after_s=_RETRY_AFTER_S,
            )
        return None

    def _update(
        self, step: PlannedStep, result: StepResult, now_s: float, step_seconds: float
    ) -> None:
        """Requests that have ended since the step was planned get nothing of it."""
        if result.prompt_logprobs:
            self._collect_prompt_logprobs(result)
        if result.num_tokens is not None:
            self._scheduler.note_drafts(step, result.num_tokens)
        sampled = step.sampled
        counts = result.num_tokens or [1] * len(sampled)
        assert len(sampled) == len(counts), "the result does not fit the plan"
        ended: list[tuple[Request, FinishReason, RequestOutput]] = []
        outputs, tokens, failed = self._outputs, result.token_ids, result.failed
        start = num_taken = 0
        finished = Status.FINISHED  # an enumeration's members are slow to look up
        for request, count in zip(sampled, counts, strict=True):
            stop = start + count
            if failed and (why := failed.get(request.slot)) is not None:
                failure = request.output([], error=_invalid(why, "grammar"))
                ended.append((request, "error", failure))
            elif count and request.status is not finished:
                # A count of none: what may come next is not known yet.
                token_ids, reason = request.take(tokens[start:stop])
                num_taken += len(token_ids)
                output = RequestOutput(request.owner, request.handle, request.request_id, token_ids)
                if result.logprobs is not None:
                    output.logprobs = _present(result.logprobs[start : start + len(token_ids)])
                if request.first_token_s is None:
                    self._note_first_token(request, output, now_s)
                if reason is None:
                    outputs.append(output)
                else:
                    ended.append((request, reason, output))
            start = stop
        assert start == len(tokens), "the result does not fit the plan"
        self._scheduler.advance(step, step_seconds)
        self._stats.generation_tokens += num_taken
        self._stats.count_step(len(step.plan.token_ids), step_seconds)
        for request, reason, output in ended:
            self._finish(request, reason, output, now_s)

    def _collect_prompt_logprobs(self, result: StepResult) -> None:
        by_slot = {request.slot: request for request in self._scheduler.running}
        for slot, logprobs in result.prompt_logprobs.items():
            by_slot[slot].prompt_logprobs += logprobs

    def _note_first_token(self, request: Request, output: RequestOutput, now_s: float) -> None:
        request.first_token_s = now_s
        output.timing = request.timing(now_s)
        if request.sampling.prompt_logprobs is not None:
            output.prompt_logprobs = request.prompt_logprobs

    def _end_expired(self, now_s: float) -> None:
        for request in self._scheduler.pop_expired(now_s):
            waited_s = now_s - request.arrival_s
            message = f"the request's deadline passed after {waited_s:.3f} s in the queue"
            error = RequestError(ErrorCode.DEADLINE_EXCEEDED, message)
            self._end(request, "error", error=error)

    def _end(
        self, request: Request, reason: FinishReason, error: RequestError | None = None
    ) -> None:
        """Ends a request with no token of its own."""
        self._finish(request, reason, request.output([], error=error), self._clock())

    def _finish(
        self, request: Request, reason: FinishReason, output: RequestOutput, now_s: float
    ) -> None:
        output.finish_reason = reason
        output.timing = request.timing(now_s)
        if reason == "stop":
            output.stop_token_id = request.token_ids[-1]
        self._scheduler.remove(request)
        self._stats.count_finish(reason)
        live = self._requests[request.owner]
        del live[request.handle]
        if not live:
            del self._requests[request.owner]
        self._num_requests -= 1
        self._outputs.append(output)
        assert self._num_requests or self._pool.is_all_free(), "idle, but blocks are missing"


def _present(logprobs: list[TokenLogprobs | None]) -> list[TokenLogprobs] | None:
    """None where nobody asked for them."""
    return [entry for entry in logprobs if entry is not None] or None


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _invalid(message: str, field: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, message, field)
