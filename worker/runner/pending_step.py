"""A step under way on this rank's device: its tokens, on their way to the host.

One copy a step, into pinned memory, behind which an event stands; nothing waits before `result`.
Made by the ModelRunner, handed out by the executors.
"""

import time

import torch
from torch import Tensor

from worker.engine.step import StepResult
from worker.errors import ShardError
from worker.runner.logit_edits import SlotState

# How often the host looks whether a step is done. Behind it the next step waits already, so the
# device loses nothing by it; a stream's token comes half of it later.
_LOOK_INTERVAL_S = 5e-5


class PendingStep:
    """Used by the engine thread; `result` is called once, in the order of the steps."""

    def __init__(
        self,
        device: torch.device,
        tokens: Tensor | None = None,
        states: list[SlotState] | None = None,
    ) -> None:
        """`tokens`: [S] int64 on the device, one for each of the states; None: nothing sampled."""
        self._states = states or []
        self._places = [state.reserve() for state in self._states]
        self._tokens = tokens
        self._is_done: torch.cuda.Event | None = None
        if device.type != "cuda":
            return
        if tokens is not None:
            # Pinned memory is handed out again only once the copy is through.
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
        # Also where nothing comes back: who runs ahead must know how far.
        self._is_done = torch.cuda.Event()
        self._is_done.record()

    def result(self, timeout_s: float) -> StepResult:
        """Raises: ShardError when the step is not done within `timeout_s`."""
        self._wait(timeout_s)
        if self._tokens is None:
            return StepResult(token_ids=[])
        token_ids: list[int] = self._tokens.tolist()
        for state, place, token_id in zip(self._states, self._places, token_ids, strict=True):
            state.output_ids[place] = token_id
        return StepResult(token_ids)

    def _wait(self, timeout_s: float) -> None:
        if self._is_done is None:
            return
        deadline_s = time.monotonic() + timeout_s
        while not self._is_done.query():
            if time.monotonic() > deadline_s:
                raise ShardError(f"a step was not done within {timeout_s:g} s")
            time.sleep(_LOOK_INTERVAL_S)
