"""Guesses the next tokens of running requests, so that one step can verify several at once.

Decides for which requests and how many; the guesses come from each request's NgramIndex, the price
of verifying one from the Pace. Knows no blocks and no executor; the BatchScheduler calls it.

A guess never changes what a request brings: every position is sampled with its own noise, and
guesses count only as far as they are what was sampled (for sampling as a function of seed and
position this is what Leviathan et al. 2023 get by rejection sampling).
"""

from math import log

from worker.config import SpeculationConfig
from worker.engine.drafting import Acceptance, Drafting
from worker.engine.pace import Pace
from worker.engine.request import Request
from worker.engine.stats import EngineStats
from worker.engine.step_time import StepLoad

# A guess must bring so many times what it costs, as both are estimates.
_MARGIN = 1.5
# In a batch fuller than this the machine has better to do.
_MAX_BATCH_FRACTION = 0.5
# Tokens that one step indexes for one request: a long prompt does not hold up the others.
_MAX_INDEXED = 2048
# The first steps make no guesses, and later one of so many: the price is a difference.
_CONTROL_STEPS = 16
# After so many steps without guesses some are made all the same: they may have become worth it.
_PROBE_STEPS = 64
_NUM_PROBED = 3
_FIRST_RATE = 0.5  # at which guesses are right, before anything is known
# After so many steps in a row that had no guesses, steps are planned ahead, without any, for so
# many; then a few are waited for again.
_PATIENCE = 8
_STEPS_AHEAD = 32
_NUM_TRIED = 2

_NONE: list[int] = []  # never changed


class Speculator:
    """Owned by the engine thread. Between `begin_step` and the step, `draft` gives guesses."""

    def __init__(
        self, config: SpeculationConfig, pace: Pace, stats: EngineStats, max_num_seqs: int
    ) -> None:
        self._config = config
        self._pace = pace
        self._stats = stats
        self._max_requests = max(1, int(max_num_seqs * _MAX_BATCH_FRACTION))
        self._acceptance = Acceptance()  # of all requests
        self._price = 0.0  # of a guess, in tokens
        self._num_left = 0  # guesses that the step may still make
        self._num_steps = 0  # in which there could have been guesses
        self._last_used = 0  # the one of them that had the latest
        self._num_fruitless = 0  # steps in a row that had none
        self._num_ahead = 0  # steps planned ahead since

    def is_hopeful(self, num_decodes: int) -> bool:
        """Whether to wait for the tokens of a step so that guesses can follow them, rather than to
        plan the next one without any while it runs. Asked once a step.
        """
        if not 0 < num_decodes <= self._max_requests:
            return False
        if self._num_fruitless < _PATIENCE:
            return True
        self._num_ahead += 1
        if self._num_ahead >= _STEPS_AHEAD:
            self._num_ahead, self._num_fruitless = 0, _PATIENCE - _NUM_TRIED
        return False

    def begin_step(self, decodes: StepLoad) -> bool:
        """Whether a step of these decodes may have guesses."""
        if not 0 < decodes.num_decodes <= self._max_requests:
            return False
        self._num_steps += 1
        if self._num_steps % _CONTROL_STEPS == 0 or self._num_steps < _CONTROL_STEPS:
            return False
        self._num_fruitless += 1
        if self._num_steps - self._last_used > _PROBE_STEPS:
            self._price, self._num_left = 0.0, _NUM_PROBED
            return True
        self._price = _MARGIN * self._pace.draft_price(decodes)
        self._num_left = decodes.num_decodes * self._config.num_speculative_tokens
        return self._price < 1

    def draft(self, request: Request, most: int) -> list[int]:
        """Guesses for the request's next tokens: at most `most`, often none."""
        drafting = request.drafting
        if drafting is None:
            if request.sampling.grammar is not None:  # its masks follow the tokens one by one
                return _NONE
            drafting = request.drafting = self._new_drafting()
        rate = drafting.acceptance.rate(self._acceptance.rate(_FIRST_RATE))
        count = min(self._num_paying(rate), most, self._num_left)
        if count <= 0:
            drafting.acceptance.fade()
            return _NONE
        if not drafting.index.extend(request.token_ids, _MAX_INDEXED):
            return _NONE
        drafts = drafting.index.propose(request.token_ids, count)
        self._num_left -= len(drafts)
        if drafts:
            self._num_fruitless = 0
        return drafts

    def note(self, request: Request, num_drafted: int, num_accepted: int) -> None:
        """Of the request's guesses in the last step so many were right."""
        assert request.drafting is not None
        self._last_used = self._num_steps
        request.drafting.acceptance.note(num_drafted, num_accepted)
        self._acceptance.note(num_drafted, num_accepted)
        self._stats.count_drafts(num_drafted, num_accepted)

    def _num_paying(self, rate: float) -> int:
        """Guess i is right with probability rate^i, and must be as likely as it costs tokens."""
        most = self._config.num_speculative_tokens
        if rate >= 1 or self._price <= 0:
            return most
        return min(int(log(self._price) / log(rate)), most) if rate > 0 else 0

    def _new_drafting(self) -> Drafting:
        return Drafting(self._config.prompt_lookup_min, self._config.prompt_lookup_max)
