"""What one request's guesses at its next tokens are made of, and how they fared.

Kept with the request, also over preemptions. Knows tokens and rates only; the Speculator uses it.
"""

from worker.engine.ngram_index import NgramIndex

# A window of about 20 guesses.
_MEMORY = 0.95
_PRIOR_TRIALS = 2.0
# Without guesses it is forgotten in about 50 tokens why, and tried again.
_FADING = 0.98


class Acceptance:
    """How often guesses turned out right: a rate with forgetting that leans on a prior one."""

    __slots__ = ("_hits", "_trials")

    def __init__(self) -> None:
        self._hits = 0.0
        self._trials = 0.0

    def rate(self, prior: float) -> float:
        return (self._hits + _PRIOR_TRIALS * prior) / (self._trials + _PRIOR_TRIALS)

    def note(self, num_drafted: int, num_accepted: int) -> None:
        """The guesses behind the first wrong one were not put to the test."""
        num_tested = min(num_accepted + 1, num_drafted)
        kept = _MEMORY**num_tested
        self._hits = self._hits * kept + num_accepted
        self._trials = self._trials * kept + num_tested

    def fade(self) -> None:
        self._hits *= _FADING
        self._trials *= _FADING


class Drafting:
    """For guesses behind `min_n` tokens that occurred before, or up to `max_n` of them."""

    __slots__ = ("acceptance", "index")

    def __init__(self, min_n: int, max_n: int) -> None:
        self.index = NgramIndex(min_n, max_n)
        self.acceptance = Acceptance()
