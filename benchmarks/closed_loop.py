"""Clients of an engine in this process: a load on it, step by step, with each step's times.

Knows no models and no command line; `engine.py` calls it. Times are the engine's: TTFT from the
request's submission to the step that brought its first token.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.load import Load, LoadResult, RequestTimes, prompts, summarize
from benchmarks.step_parts import StepTimes, TimedExecutor, timed_step
from worker.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.lookahead_engine import engine_for
from worker.engine.request import NewRequest, RequestOutput
from worker.engine.sampling_params import SamplingParams

_OWNER = "benchmark"


@dataclass
class ClosedLoop:
    """An engine and its clients: each of `concurrency` submits its next request when its last one
    has ended. Used by one thread.
    """

    config: EngineConfig
    executor: TimedExecutor
    engine: Engine = field(init=False)
    _next_handle: int = 0
    _live: dict[int, RequestTimes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine = engine_for(self.config, self.executor, time.perf_counter)

    def run(self, load: Load) -> tuple[LoadResult, list[StepTimes]]:
        """Raises: TimeoutError past the load's `timeout_s`; RuntimeError when a request fails."""
        waiting = iter(prompts(load))
        finished: list[RequestTimes] = []
        steps: list[StepTimes] = []
        started_s = time.perf_counter()
        while self._submit(waiting, load) or self._live:
            finished += self._step(steps)
            if time.perf_counter() - started_s > load.timeout_s:
                self.end()
                raise TimeoutError(f"the load took more than {load.timeout_s:.0f} s")
        return summarize(finished, time.perf_counter() - started_s, load), steps

    def start_decoding(self, load: Load) -> None:
        """Submits `load.concurrency` requests and computes their prompts."""
        self._submit(iter(prompts(load)), load)
        while not all(times.token_times for times in self._live.values()):
            self._step([])

    def steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._step([])

    def end(self) -> None:
        """Ends whatever is live, and the step that is under way."""
        self.engine.abort_owner(_OWNER)
        for output in self.engine.take_outputs():
            self._take(output, time.perf_counter())
        while self.engine.has_work:
            self._step([])

    def _submit(self, waiting: Iterator[list[int]], load: Load) -> bool:
        """Fills up; whether it submitted anything."""
        num_before = self._next_handle
        while len(self._live) < load.concurrency:
            prompt = next(waiting, None)
            if prompt is None:
                break
            self._add(prompt, load.output_len)
        return self._next_handle > num_before

    def _add(self, prompt: list[int], output_len: int) -> None:
        handle = self._next_handle
        self._next_handle += 1
        sampling = SamplingParams(max_tokens=output_len, temperature=0.0, seed=handle)
        now_s = time.perf_counter()
        self._live[handle] = RequestTimes(now_s)
        self.engine.add(NewRequest(_OWNER, handle, f"r{handle}", prompt, sampling, [], now_s))

    def _step(self, steps: list[StepTimes]) -> list[RequestTimes]:
        outputs, times = timed_step(self.engine, self.executor)
        now_s = time.perf_counter()
        if times is not None:
            steps.append(times)
        return [ended for output in outputs if (ended := self._take(output, now_s)) is not None]

    def _take(self, output: RequestOutput, now_s: float) -> RequestTimes | None:
        """The request's times, once it has ended."""
        if output.error is not None:
            raise RuntimeError(f"{output.request_id}: {output.error.message}")
        times = self._live[output.handle]
        times.token_times += [now_s] * len(output.token_ids)
        return self._live.pop(output.handle) if output.finish_reason is not None else None
