"""Output held to grammars: which tokens may come next in each sequence of a batch.

The parser works in a process of its own (mask_process.py): it computes the next masks while the
next step runs, and a grammar that hangs or swells ends that process, not the engine. Used by the
sampler on rank 0; knows nothing of text or steps.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.engine.sampling_params import Grammar
from worker.runner.mask_client import MaskClient

logger = logging.getLogger(__name__)

Mask = npt.NDArray[np.uint8]

_MAX_REMEMBERED = 1024  # grammars that have ended a process
_NOTHING: list[int] = []  # never changed
_HANGING_CPU_S = 0.5  # computed after a mask was overdue already


@dataclass(frozen=True, slots=True)
class GrammarTimeouts:
    """Seconds. A step waits so long for masks that are late; then the sequences concerned get no
    token in it, and the others go on."""

    step: float = 0.02
    first: float = 0.003  # instead, where only grammars that still compile are waited for
    alone: float = 0.1  # instead, where nobody else is kept waiting
    mask: float = 3.0  # after which the sequence fails and the process is replaced
    compilation: float = 10.0
    start: float = 60.0  # of the process, the vocabulary included


class SlotGrammar:
    """Where one sequence is in its grammar. Invariant: once `error` is set or it has ended, nothing
    is forbidden and nothing read any more. Used by the engine thread only."""

    __slots__ = (
        "error",
        "forced",
        "grammar",
        "has_begun",
        "has_ended",
        "is_ready",
        "key",
        "mask",
        "overdue_cpu_s",
        "row",
        "since_s",
        "token_ids",
    )

    def __init__(
        self, key: int, row: int, mask: Mask, grammar: Grammar, token_ids: Sequence[int]
    ) -> None:
        self.key = key
        self.row = row
        self.mask = mask  # [V / 8] in shared memory: bit i says whether token i may come next
        self.grammar = grammar
        self.token_ids = list(token_ids)  # all it has read
        self.is_ready = False  # the mask of what follows is there
        self.has_begun = False  # it has had a mask
        self.has_ended = False
        self.forced = _NOTHING  # the only way to go on, if there is but one
        self.error: str | None = None
        self.since_s = 0.0  # since when it waits for its mask
        # what the process had computed when its mask was found to be overdue
        self.overdue_cpu_s: float | None = None

    @property
    def is_settled(self) -> bool:
        """It waits for no mask."""
        return self.is_ready or self.has_ended or self.error is not None


class GrammarMasks:
    """All constrained sequences of a rank. Used by the engine thread only; nothing raises: what
    cannot be followed fails its sequence alone.
    """

    def __init__(
        self,
        client: MaskClient,
        eos_token_ids: Iterable[int],
        timeouts: GrammarTimeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._eos_token_ids = frozenset(eos_token_ids)
        self._timeouts = timeouts or GrammarTimeouts()
        self._clock = clock
        self._live: dict[int, SlotGrammar] = {}
        self._accepted: list[tuple[int, list[int]]] = []  # not yet told
        self._released: list[int] = []
        self._culprits: dict[Grammar, str] = {}
        self._suspects: set[Grammar] = set()

    def start(self, slot: int, grammar: Grammar, output_ids: Sequence[int]) -> SlotGrammar:
        """At the place behind the tokens that the sequence has already."""
        mask = self._client.rows[slot]
        started = SlotGrammar(self._client.new_key(), slot, mask, grammar, output_ids)
        if output_ids and output_ids[-1] in self._eos_token_ids:
            started.has_ended = True
            return started
        started.error = self._culprits.get(grammar)
        if started.error is None:
            self._live[started.key] = started
            self._begin(started)
        return started

    def release(self, state: SlotGrammar) -> None:
        if self._live.pop(state.key, None) is not None:
            self._released.append(state.key)

    def accept(self, state: SlotGrammar, token_ids: list[int]) -> None:
        """The sequence's next tokens; `flush` has their masks computed."""
        if state.has_ended or state.error is not None:
            return
        state.is_ready = False
        if state.forced:
            state.forced = _NOTHING
        if not self._eos_token_ids.isdisjoint(token_ids):
            state.has_ended = True
            return
        state.token_ids += token_ids
        self._accepted.append((state.key, token_ids))

    def flush(self) -> None:
        """Tells the process what was accepted and released: it works while the caller goes on."""
        if not self._accepted and not self._released:
            return
        now_s = self._clock()
        for key, _ in self._accepted:
            if key in self._live:
                self._live[key].since_s = now_s
        if self._accepted:
            self._client.accept(self._accepted)
            self._accepted = []
        if self._released:
            self._client.release(self._released)
            self._released = []

    def settle(self, states: list[SlotGrammar], is_alone: bool) -> None:
        """Waits for the masks of these, for so long as a step may; `is_settled` says of which they
        have come. `is_alone`: the step brings nothing else."""
        waiting = [state for state in states if not state.is_settled]
        if waiting:
            self._take(0.0)
            waiting = [state for state in waiting if not state.is_settled]
        if not waiting:
            return
        limits = self._timeouts
        # One that still compiles may take long: others hardly wait for it.
        budget_s = limits.step if any(state.has_begun for state in waiting) else limits.first
        deadline_s = self._clock() + (limits.alone if is_alone else budget_s)
        while waiting and (left_s := deadline_s - self._clock()) > 0:
            self._take(left_s)
            waiting = [state for state in waiting if not state.is_settled]
            if self._client.problem:
                break
        if waiting:
            self._end_overdue(waiting)

    def warm_up(self) -> None:
        """Starts the process before anybody needs it."""
        self._client.warm_up()

    def _begin(self, state: SlotGrammar) -> None:
        state.is_ready = state.has_begun = False
        state.forced = _NOTHING
        state.since_s = self._clock()
        state.overdue_cpu_s = None
        self._client.start(state.key, state.row, state.grammar, state.token_ids)

    def _take(self, timeout_s: float) -> None:
        """What the process has told; replaces it if it has died."""
        news = self._client.receive(timeout_s)
        if news is None:
            self._replace(self._client.at_work(), "takes too much memory")
            return
        live = self._live
        for told in news:
            for key in told.ready:
                state = live.get(key)
                if state is not None:
                    state.is_ready = state.has_begun = True
                    state.overdue_cpu_s = None
            for key, forced in told.forced.items():
                if key in live:
                    live[key].forced = forced
            for key, error in told.errors.items():
                if key in live:
                    self._fail([live[key]], error)

    def _end_overdue(self, waiting: list[SlotGrammar]) -> None:
        """Fails what has waited too long; a process that computes is replaced."""
        now_s, limits = self._clock(), self._timeouts
        if self._client.problem:
            self._fail(waiting, self._client.problem)
            return
        if not self._client.is_running:
            if now_s - self._client.started_s > limits.start:
                self._fail(waiting, "grammars cannot be used: their process does not start")
            return
        since_s = self._client.running_since_s  # before that nothing could be computed
        overdue = [
            state
            for state in waiting
            if now_s - max(state.since_s, since_s)
            > (limits.mask if state.has_begun else limits.compilation)
        ]
        if overdue and self._has_computed(overdue, now_s):
            keys = {state.key for state in overdue}
            self._replace(self._client.at_work() & keys or keys, "takes too long")

    def _has_computed(self, overdue: list[SlotGrammar], now_s: float) -> bool:
        """Whether the process hangs; on a busy machine it may only have had no turn."""
        cpu_s = self._client.cpu_seconds()
        if cpu_s is None or now_s - min(state.since_s for state in overdue) > self._timeouts.start:
            return True
        for state in overdue:
            if state.overdue_cpu_s is None:
                state.overdue_cpu_s = cpu_s
        return any(cpu_s - (state.overdue_cpu_s or 0.0) > _HANGING_CPU_S for state in overdue)

    def _replace(self, culprits: set[int], reason: str) -> None:
        """Another process, which follows all but the culprits from their tokens."""
        logger.warning("the mask process is replaced: a grammar %s", reason)
        for grammar in {self._live[key].grammar for key in culprits if key in self._live}:
            # Of two that were at work one may be innocent: both may try again, once.
            if len(culprits) == 1 or grammar in self._suspects:
                self._culprits[grammar] = f"the grammar {reason} to be followed"
            self._suspects.add(grammar)
        while len(self._culprits) > _MAX_REMEMBERED:
            del self._culprits[next(iter(self._culprits))]
        if len(self._suspects) > _MAX_REMEMBERED:
            self._suspects.clear()
        self._client.restart()
        self._accepted.clear()
        self._released.clear()
        for state in list(self._live.values()):
            known = self._culprits.get(state.grammar)
            if known is not None:
                state.error = known
                del self._live[state.key]
            elif not state.has_ended:
                self._begin(state)

    def _fail(self, states: list[SlotGrammar], reason: str) -> None:
        for state in states:
            state.error = reason
            state.is_ready = False
            self.release(state)
