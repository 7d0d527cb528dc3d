"""How long a step will take, learned from the steps before it.

A step's time is taken to be linear in what it computes (`StepLoad`); the coefficients are fitted
online. Knows neither requests nor targets; the Pace asks it. Pure: no clock, only what it is told.
"""

from dataclasses import dataclass
from math import isfinite
from operator import mul

# A window of about this many steps; more would be slow to follow a machine that changes.
_FORGETTING = 0.98
# A step slower by more than this many times the usual error counts as that: somebody else had the
# machine. Nothing makes a step quicker than it is.
_OUTLIER = 3.0
_MIN_USUAL_ERROR = 0.03
_MAX_USUAL_ERROR = 1.0
# Errors that keep one sign and reach this size mean that the machine has changed: learn afresh.
_BIAS = 0.15
_BIAS_RATE = 0.25
_USUAL_ERROR_RATE = 0.1
_FRESH = 16.0  # by how much the old steps' weight falls then
# Before anything is known a coefficient may be this many times the first step's time per unit.
_PRIOR_DEVIATION = 10.0
_LEAST_VARIANCE = 1e-12  # of the prior's
# No clock is to be believed beyond these.
_LEAST_S, _MOST_S = 1e-7, 1e5
# Units that bring the coefficients to one order of magnitude.
_UNITS = (1.0, 1 / 256, 1 / (1 << 18), 1 / 8, 1 / 8192, 1 / 8)


@dataclass(slots=True)
class StepLoad:
    """What one step computes. Its attributes are the features of the fit, in this order."""

    num_prefill: int = 0  # tokens of prompts, recomputed ones included
    prefill_pairs: float = 0.0  # tokens times the tokens each attends to, over those
    num_decodes: int = 0  # sequences that get a token
    decode_context: int = 0  # tokens they attend to, over all
    num_drafts: int = 0  # rows besides, that verify guesses


class StepTimeModel:
    """Recursive least squares on relative errors, with forgetting only in the directions that new
    steps speak of (Kulhavy 1987): hours of decoding do not make it forget what a prompt costs.

    Invariant: no coefficient is negative, so more work is never predicted to take less time.
    Deterministic: a function of the loads and times it was given. Owned by the engine thread.
    """

    def __init__(self) -> None:
        self.num_steps: int
        self.usual_error: float  # of a prediction, as a fraction of the true time
        self._coefficients: list[float]
        self._prior_variance = 0.0  # until the first step
        self._covariance: list[list[float]]
        self._bias: float
        self._forget()

    def predict_s(self, load: StepLoad) -> float:
        return sum(map(mul, self._coefficients, _features(load)))

    @property
    def prefill_token_s(self) -> float:
        """Of one more prompt token, its attention left out."""
        return self._coefficients[1] * _UNITS[1]

    @property
    def prefill_pair_s(self) -> float:
        """Of one more pair of a prompt token and a token that it attends to."""
        return self._coefficients[2] * _UNITS[2]

    @property
    def draft_s(self) -> float:
        """Of one more row that verifies a guess."""
        return self._coefficients[5] * _UNITS[5]

    def observe(self, load: StepLoad, seconds: float) -> None:
        """A step of this load took so long."""
        if seconds <= 0:
            return
        seconds = min(max(seconds, _LEAST_S), _MOST_S)
        if self.num_steps == 0:
            self._set_prior(load, seconds)
        self.num_steps += 1
        if abs(self._bias) > max(_BIAS, self.usual_error):
            self._doubt()
        # Divided by the time, so that a slow step and a quick one weigh the same.
        x = [value / seconds for value in _features(load)]
        px = [sum(map(mul, row, x)) for row in self._covariance]
        surprise = sum(map(mul, x, px))  # how little was known of such a step
        error = 1.0 - sum(map(mul, self._coefficients, x))
        believed = self._note_error(error, (1 + max(surprise, 0.0)) ** 0.5)
        if surprise > 0:
            self._learn(px, surprise, believed)
        if not all(map(isfinite, (*self._coefficients, *map(sum, self._covariance)))):
            self._forget()

    def _forget(self) -> None:
        """A fit that has run away from all measure ends nothing: it begins again."""
        size = len(_UNITS)
        self.num_steps = 0
        self.usual_error = 0.1
        self._coefficients = [0.0] * size
        self._covariance = [[0.0] * size for _ in range(size)]
        self._bias = 0.0

    def _set_prior(self, load: StepLoad, seconds: float) -> None:
        self._prior_variance = (_PRIOR_DEVIATION * seconds / sum(_features(load))) ** 2
        for i, row in enumerate(self._covariance):
            row[i] = self._prior_variance

    def _note_error(self, error: float, expected: float) -> float:
        """Keeps the books of errors; returns this one as far as it is to be believed. `expected`:
        how many times the usual error one is expected here, as little was known.
        """
        limit = _OUTLIER * self.usual_error * expected
        believed = min(error, limit)
        size = min(abs(error) / expected, _MAX_USUAL_ERROR)
        self.usual_error += _USUAL_ERROR_RATE * (size - self.usual_error)
        self.usual_error = max(self.usual_error, _MIN_USUAL_ERROR)
        self._bias += _BIAS_RATE * (believed / expected - self._bias)
        return believed

    def _doubt(self) -> None:
        """The machine has become slower or faster: at everything, until new steps tell more. Lets
        the old steps' weight fall, to that of the prior at the least.
        """
        change = max(1 - self._bias, 1 / _FRESH)
        self._coefficients = [c / change for c in self._coefficients]
        self._bias = 0.0
        covariance = self._covariance
        scales = [
            min(_FRESH, self._prior_variance / row[i]) ** 0.5 for i, row in enumerate(covariance)
        ]
        self._covariance = [
            [value * a * b for value, b in zip(row, scales, strict=True)]
            for row, a in zip(covariance, scales, strict=True)
        ]

    def _learn(self, px: list[float], surprise: float, error: float) -> None:
        """`px`: covariance times features."""
        covariance = self._covariance
        gain = error / (1 + surprise)
        self._coefficients = [c + gain * p for c, p in zip(self._coefficients, px, strict=True)]
        self._clear_negative()
        kept = _FORGETTING - (1 - _FORGETTING) / surprise
        if kept:
            factor = 1 / (1 / kept + surprise)
            for i, row in enumerate(covariance):
                scale = factor * px[i]
                for j in range(i, len(row)):  # and mirrored: rounding must not tilt it
                    row[j] = covariance[j][i] = row[j] - scale * px[j]
            self._keep_positive()

    def _keep_positive(self) -> None:
        """Rounding may turn a variance that has become very small negative."""
        least = self._prior_variance * _LEAST_VARIANCE
        for i, row in enumerate(self._covariance):
            row[i] = max(row[i], least)

    def _clear_negative(self) -> None:
        """Each to zero, and the others to what they most likely are then."""
        for i, row in enumerate(self._covariance):
            negative = self._coefficients[i]
            if negative < 0:
                share = negative / row[i]
                self._coefficients = [
                    c - share * p for c, p in zip(self._coefficients, row, strict=True)
                ]
        self._coefficients = [max(c, 0.0) for c in self._coefficients]


def _features(load: StepLoad) -> tuple[float, ...]:
    _, prefill, pairs, decodes, context, drafts = _UNITS
    return (
        1.0,
        load.num_prefill * prefill,
        load.prefill_pairs * pairs,
        load.num_decodes * decodes,
        load.decode_context * context,
        load.num_drafts * drafts,
    )
