import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.worker.engine.harness import Harness, new_request, prompt_of
from worker.engine.loop import EngineLoop
from worker.engine.request import ErrorCode, RequestOutput

WAIT_S = 10.0


class Sink:
    """Collects what the loop calls back with; lets a test wait for an end."""

    def __init__(self) -> None:
        self.batches: list[list[RequestOutput]] = []
        self.threads: set[str] = set()
        self.deaths: list[BaseException] = []
        self._changed = threading.Condition()

    def on_outputs(self, outputs: list[RequestOutput]) -> None:
        with self._changed:
            self.threads.add(threading.current_thread().name)
            self.batches.append(outputs)
            self._changed.notify_all()

    def on_death(self, error: BaseException) -> None:
        with self._changed:
            self.deaths.append(error)
            self._changed.notify_all()

    def outputs(self, handle: int) -> list[RequestOutput]:
        return [o for batch in self.batches for o in batch if o.handle == handle]

    def tokens(self, handle: int) -> list[int]:
        return [token for output in self.outputs(handle) for token in output.token_ids]

    def wait_for_end(self, handle: int) -> RequestOutput:
        def ends() -> list[RequestOutput]:
            return [o for o in self.outputs(handle) if o.finish_reason is not None]

        with self._changed:
            assert self._changed.wait_for(lambda: bool(ends()), WAIT_S)
        assert len(ends()) == 1
        return ends()[0]

    def wait_for_death(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.deaths), WAIT_S)


class Gate:
    """Holds the executor inside a step until opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, plan: object) -> None:
        self.entered.set()
        assert self.open.wait(WAIT_S)


@contextmanager
def running(harness: Harness) -> Iterator[tuple[EngineLoop, Sink]]:
    loop, sink = EngineLoop(harness.engine), Sink()
    loop.start(sink.on_outputs, sink.on_death)
    try:
        yield loop, sink
    finally:
        assert loop.stop(drain=False, timeout_s=WAIT_S)
        assert harness.executor.is_closed


def test_submitted_request_is_answered_from_the_engine_thread() -> None:
    harness = Harness()
    with running(harness) as (loop, sink):
        harness.added[1] = new_request(1, prompt_of(9), 6)
        loop.submit(harness.added[1])
        assert sink.wait_for_end(1).finish_reason == "length"
        assert sink.tokens(1) == harness.expected_tokens(1)
        assert sink.threads == {"engine"}


def test_one_callback_a_step_carries_all_its_outputs() -> None:
    harness, gate = Harness(), Gate()
    with running(harness) as (loop, sink):
        harness.executor.before_step = gate
        loop.submit(new_request(0, prompt_of(5), 1))
        assert gate.entered.wait(WAIT_S)
        for handle in range(1, 6):
            loop.submit(new_request(handle, prompt_of(5, start=handle), 3))
        gate.open.set()
        for handle in range(1, 6):
            sink.wait_for_end(handle)
        assert [len(batch) for batch in sink.batches] == [1, 5, 5, 5]


def test_idle_engine_takes_no_steps_and_wakes_for_a_submit() -> None:
    harness = Harness()
    with running(harness) as (loop, sink):
        loop.submit(new_request(1, prompt_of(5), 2))
        sink.wait_for_end(1)
        steps = loop.steps
        cpu_s = time.process_time()
        time.sleep(0.1)
        assert time.process_time() - cpu_s < 0.05, "the idle engine spins"
        loop.submit(new_request(2, prompt_of(5), 2))
        sink.wait_for_end(2)
        assert loop.steps == steps + 2


def test_abort_of_an_owner_frees_everything_before_the_next_step() -> None:
    harness, gate = Harness(), Gate()
    with running(harness) as (loop, sink):
        harness.executor.before_step = gate
        for handle in range(3):
            loop.submit(new_request(handle, prompt_of(5, start=handle), 100))
        assert gate.entered.wait(WAIT_S)
        loop.abort_owner("gateway")
        gate.open.set()
        for handle in range(3):
            assert sink.wait_for_end(handle).finish_reason == "abort"
            assert len(sink.tokens(handle)) <= 1
        assert len(harness.executor.plans) == 1


def test_abort_of_one_handle_leaves_the_others() -> None:
    harness, gate = Harness(), Gate()
    with running(harness) as (loop, sink):
        harness.executor.before_step = gate
        loop.submit(new_request(1, prompt_of(5), 100))
        loop.submit(new_request(2, prompt_of(5), 100))
        loop.abort("gateway", [1])
        gate.open.set()
        assert sink.wait_for_end(1).finish_reason == "abort"
        assert sink.wait_for_end(2).finish_reason == "length"


def test_failed_executor_fails_all_requests_over_and_tells() -> None:
    harness = Harness()

    def fail(plan: object) -> None:
        raise RuntimeError("rank 1 is gone")

    harness.executor.before_step = fail
    with running(harness) as (loop, sink):
        loop.submit(new_request(1, prompt_of(5)))
        error = sink.wait_for_end(1).error
        assert error is not None and error.code is ErrorCode.UNAVAILABLE
        sink.wait_for_death()
        assert not loop.is_alive and str(loop.error) == "rank 1 is gone"
        # Whoever has not heard yet is answered too.
        loop.submit(new_request(2, prompt_of(5)))
        error = sink.wait_for_end(2).error
        assert error is not None and error.code is ErrorCode.UNAVAILABLE
        assert not loop.load.has_work


def test_hanging_step_shows_in_its_age_and_in_the_load() -> None:
    harness, gate = Harness(), Gate()
    with running(harness) as (loop, _):
        assert loop.step_age_s() == 0.0
        harness.executor.before_step = gate
        loop.submit(new_request(1, prompt_of(5)))
        assert gate.entered.wait(WAIT_S)
        first = loop.step_age_s()
        assert loop.step_age_s() > first
        assert loop.load.has_work and loop.load.steps == 0
        assert not loop.stop(drain=False, timeout_s=0.0)
        gate.open.set()


def test_drain_finishes_what_is_live_and_refuses_the_rest() -> None:
    harness, gate = Harness(), Gate()
    with running(harness) as (loop, sink):
        harness.executor.before_step = gate
        harness.added[1] = new_request(1, prompt_of(5), 5)
        loop.submit(harness.added[1])
        assert gate.entered.wait(WAIT_S)
        loop.begin_drain()
        loop.submit(new_request(2, prompt_of(5)))
        gate.open.set()
        assert loop.stop(drain=True, timeout_s=WAIT_S)
        assert sink.wait_for_end(1).finish_reason == "length"
        assert sink.tokens(1) == harness.expected_tokens(1)
        error = sink.wait_for_end(2).error
        assert error is not None and error.code is ErrorCode.UNAVAILABLE


def test_stop_without_drain_fails_live_requests_over() -> None:
    harness, gate = Harness(), Gate()
    with running(harness) as (loop, sink):
        harness.executor.before_step = gate
        loop.submit(new_request(1, prompt_of(5), 100))
        assert gate.entered.wait(WAIT_S)
        threading.Timer(0.05, gate.open.set).start()
        assert loop.stop(drain=False, timeout_s=WAIT_S)
        error = sink.wait_for_end(1).error
        assert error is not None and error.code is ErrorCode.UNAVAILABLE


def test_drain_that_takes_too_long_fails_what_is_left() -> None:
    harness = Harness(max_model_len=120)
    stepped = threading.Event()

    def slowly(plan: object) -> None:
        stepped.set()
        time.sleep(0.02)

    harness.executor.before_step = slowly
    with running(harness) as (loop, sink):
        loop.submit(new_request(1, prompt_of(5), 100))
        assert stepped.wait(WAIT_S)
        assert loop.stop(drain=True, timeout_s=0.1)
        assert sink.wait_for_end(1).finish_reason == "error"


def test_news_add_up_to_the_prefix_cache_and_name_every_submit() -> None:
    harness = Harness(num_blocks=16)
    mirror: set[bytes] = set()
    admitted: list[str] = []
    with running(harness) as (loop, sink):
        for handle in range(8):
            prompt = prompt_of(20, start=handle) if handle != 3 else []
            loop.submit(new_request(handle, prompt))
            sink.wait_for_end(handle)
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            news = loop.take_news()
            if news is not None:
                mirror = (mirror - set(news.removed_blocks)) | set(news.stored_blocks)
                admitted += news.admitted_request_ids
            if len(admitted) == 8 and mirror == set(harness.engine.cached_hashes()):
                break
            time.sleep(0.001)
    assert admitted == [f"r{handle}" for handle in range(8)]
    assert mirror == set(harness.engine.cached_hashes())


@pytest.mark.parametrize("num_threads", [4])
def test_submits_from_many_threads_all_end(num_threads: int) -> None:
    harness = Harness(max_num_seqs=8)
    with running(harness) as (loop, sink):

        def submit(first: int) -> None:
            for handle in range(first, first + 20):
                loop.submit(new_request(handle, prompt_of(4, start=handle), 3))

        threads = [threading.Thread(target=submit, args=(100 * i,)) for i in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        for i in range(num_threads):
            for handle in range(100 * i, 100 * i + 20):
                assert sink.wait_for_end(handle).finish_reason == "length"
