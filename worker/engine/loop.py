"""The engine's thread: an inbox in front of the Engine, immutable snapshots behind it.

Everything asynchronous talks to this object and to nothing below it. `submit` and `abort` may be
called from any thread; outputs leave through `on_outputs`, once a step, in the engine thread. If an
engine process of its own ever pays, this is the seam where it would go.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from protos.block_hash import BlockHash
from worker.engine.engine import Engine
from worker.engine.request import ErrorCode, NewRequest, RequestError, RequestOutput
from worker.report import EngineCounters, ReplicaLoad

logger = logging.getLogger(__name__)

OutputsCallback = Callable[[list[RequestOutput]], None]
DeathCallback = Callable[[BaseException], None]

_IDLE_WAIT_S = 60.0  # only bounds the wait: a message ends it at once
_MAX_ADMITTED_IDS = 16_384  # kept for a reporter that cannot report; reservations expire anyway


@dataclass(frozen=True, slots=True)
class EngineNews:
    """What happened since the last one was taken. Taken by one reader, the reporter."""

    stored_blocks: list[BlockHash] = field(default_factory=list)
    removed_blocks: list[BlockHash] = field(default_factory=list)
    admitted_request_ids: list[str] = field(default_factory=list)  # taken in, refused ones too


@dataclass(frozen=True, slots=True)
class _Abort:
    owner: Hashable
    handles: tuple[int, ...] | None  # None: all of the owner's


class _Wake:
    """Nothing to do but look around."""


class _Stop:
    """Fail what is left and end."""


_Message = NewRequest | _Abort | _Wake | _Stop


class EngineLoop:
    """Owns the engine and its thread from `start` to the thread's end.

    Invariant: every submit is answered by exactly one final output for as long as the thread runs,
    also after the engine has failed. Reading attributes is safe from any thread: each is replaced,
    never changed.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_model_len = engine.config.max_model_len
        self.eos_token_ids = engine.config.eos_token_ids
        self.load: ReplicaLoad = engine.load()
        self.counters: EngineCounters = engine.counters()
        self.error: BaseException | None = None  # why the engine died
        self._engine = engine
        self._clock = clock
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._on_outputs: OutputsCallback | None = None
        self._on_death: DeathCallback | None = None
        self._is_draining = False
        self._is_stopping = False
        self._step_started_s: float | None = None
        self._admitted: deque[str] = deque(maxlen=_MAX_ADMITTED_IDS)
        # A one-element mailbox: the engine thread fills it when empty, the reporter empties it.
        self._news: EngineNews | None = None

    # --- any thread -------------------------------------------------------------------------------

    def start(self, on_outputs: OutputsCallback, on_death: DeathCallback) -> None:
        """Both are called in the engine thread and must neither block nor raise."""
        self._on_outputs = on_outputs
        self._on_death = on_death
        self._thread.start()

    def submit(self, new: NewRequest) -> None:
        self._inbox.put(new)

    def abort(self, owner: Hashable, handles: Iterable[int]) -> None:
        self._inbox.put(_Abort(owner, tuple(handles)))

    def abort_owner(self, owner: Hashable) -> None:
        self._inbox.put(_Abort(owner, None))

    @property
    def steps(self) -> int:
        """Steps computed so far; exact in the engine thread, in `on_outputs` the step they came
        from.
        """
        return self._engine.steps

    @property
    def is_alive(self) -> bool:
        """Whether the engine can still compute."""
        return self.error is None and self._thread.is_alive()

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    def step_age_s(self) -> float:
        """How long the current step has been running; 0 between steps."""
        started_s = self._step_started_s
        return 0.0 if started_s is None else max(self._clock() - started_s, 0.0)

    def now_s(self) -> float:
        """The clock of arrivals and deadlines."""
        return self._clock()

    def take_news(self) -> EngineNews | None:
        """News since the last call; for one reader. Read `load` after it: it is at least as new."""
        news = self._news
        if news is not None:
            self._news = None
            self._inbox.put(_Wake())  # an idle engine may hold more
        return news

    def begin_drain(self) -> None:
        """From now on submits are refused; what is live goes on."""
        self._is_draining = True
        self._inbox.put(_Wake())

    def stop(self, drain: bool, timeout_s: float) -> bool:
        """Ends the thread, with `drain` once nothing is live any more; blocks for `timeout_s` at
        most.

        What is left then fails with UNAVAILABLE, so that gateways continue it elsewhere. False: the
        thread hangs in a step.
        """
        deadline_s = time.monotonic() + timeout_s
        self.begin_drain()
        if not self._thread.is_alive():
            return True
        if drain:
            self._is_stopping = True
            self._inbox.put(_Wake())
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._inbox.put(_Stop())
            self._thread.join(max(deadline_s - time.monotonic(), 1.0))
        return not self._thread.is_alive()

    # --- engine thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            logger.exception("the engine failed; all its requests fail over")
            self._die(error)
        finally:
            self._close()

    def _serve(self) -> None:
        engine = self._engine
        while self._take_messages(is_idle=not engine.has_work):
            self._publish()
            self._step_started_s = self._clock()
            outputs = engine.step()
            self._step_started_s = None
            self._emit(outputs)
            if self._is_stopping and not engine.has_work:
                return

    def _take_messages(self, is_idle: bool) -> bool:
        """Handles what is in the inbox, waiting for something if idle; False: stop."""
        if is_idle:
            self._publish()
            try:
                if not self._handle(self._inbox.get(timeout=_IDLE_WAIT_S)):
                    return False
            except Empty:
                return True
        while not self._inbox.empty():
            if not self._handle(self._inbox.get_nowait()):
                return False
        return True

    def _handle(self, message: _Message) -> bool:
        match message:
            case NewRequest():
                self._admit(message)
            case _Abort(owner, None):
                self._engine.abort_owner(owner)
            case _Abort(owner, handles):
                self._engine.abort(owner, handles or ())
            case _Stop():
                self._engine.fail_all(_unavailable("the replica is shutting down"))
                self._emit(self._engine.take_outputs())
                return False
            case _Wake():
                pass
        return True

    def _admit(self, new: NewRequest) -> None:
        self._admitted.append(new.request_id)
        if self.error is not None:
            self._engine.refuse(new, _unavailable("the engine of this replica has failed"))
        elif self._is_draining:
            self._engine.refuse(new, _unavailable("the replica is draining"))
        else:
            self._engine.add(new)

    def _publish(self) -> None:
        # Before the news: whoever takes those then finds a load that is at least as new.
        self.load = self._engine.load()
        self.counters = self._engine.counters()
        if self._news is None:
            events = self._engine.drain_cache_events()
            if events is not None or self._admitted:
                stored, removed = (events.stored, events.removed) if events else ([], [])
                self._news = EngineNews(stored, removed, list(self._admitted))
                self._admitted.clear()

    def _emit(self, outputs: list[RequestOutput]) -> None:
        if outputs and self._on_outputs is not None:
            self._on_outputs(outputs)

    def _die(self, error: Exception) -> None:
        """Everything live fails over; then answer submits until somebody calls stop."""
        self.error = error
        self._step_started_s = None
        try:
            self._engine.fail_all(_unavailable("the engine of this replica has failed"))
        except Exception:
            logger.exception("the failed engine could not end all its requests")
        self._emit(self._engine.take_outputs())
        self._publish()
        if self._on_death is not None:
            self._on_death(error)
        while not self._is_stopping and self._take_messages(is_idle=True):
            self._emit(self._engine.take_outputs())

    def _close(self) -> None:
        self._is_draining = True
        while not self._inbox.empty():  # what came too late is refused
            self._handle(self._inbox.get_nowait())
        self._emit(self._engine.take_outputs())
        self._publish()
        try:
            self._engine.close()
        except Exception:
            logger.exception("closing the executor failed")


def _unavailable(message: str) -> RequestError:
    return RequestError(ErrorCode.UNAVAILABLE, message)
