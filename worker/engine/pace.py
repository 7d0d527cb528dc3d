"""How much a step may carry, so that running streams keep their rhythm while prompts come in.

Holds the target for the time between two tokens of a stream and asks the StepTimeModel what a step
will take. The BatchScheduler asks it once a step for prompt tokens, and the Speculator for the
price of a guess. Knows no requests.

The trade: what a step does not carry comes later, so a tight target delays the first tokens of the
requests that come in, and a loose one the next tokens of those that run. (Chunked prefill beside
decodes is Sarathi-Serve's, 2024, with a fixed budget; the fitted one is ours.)
"""

from worker.engine.step_time import StepLoad, StepTimeModel

# Without a target of the user's: so many times a step that only decodes, within these limits, but
# as much time for prompts as for decoding at the least.
_AUTO_FACTOR = 4.0
_AUTO_LEAST_FACTOR = 2.0
_AUTO_LEAST_S = 0.05
_AUTO_MOST_S = 0.2
# A step aims below the target by so many usual errors of a prediction, to this part at the least.
_ERRORS_BELOW = 3.0
_LEAST_AIM = 0.6
# Prompts get this part of what decoding takes even if decoding alone misses the target.
_PREFILL_SHARE = 0.25
# Without streams a step may last so long, or have so many tokens, which make full use of a machine:
# a longer one lets short prompts and the ends of long ones wait for the rest of it.
_LONGEST_S = 0.5
_FULL_TOKENS = 256
# Steps that only decode resemble each other: after some in a row one of so many teaches enough.
_FIRST_STEPS = 32
_PLAIN_STEPS = 4


class Pace:
    """Owned by the engine thread. `target_s`: None chooses one to suit the model, 0 has none.

    Invariant: prompts always get a block's tokens a step, so they end whatever the target.
    """

    def __init__(self, target_s: float | None, block_size: int) -> None:
        self._target_s = target_s
        self._block_size = block_size
        self._num_plain = 0  # steps in a row
        self._model = StepTimeModel()

    def observe(self, load: StepLoad, seconds: float) -> None:
        """A step of this load took so long."""
        is_plain = not load.num_prefill and not load.num_drafts
        self._num_plain = self._num_plain + 1 if is_plain else 0
        if self._num_plain > _FIRST_STEPS and self._num_plain % _PLAIN_STEPS:
            return
        self._model.observe(load, seconds)

    def prefill_tokens(self, decodes: StepLoad, num_computed: int, most: int) -> int:
        """Prompt tokens for a step beside these decodes: at least a block's, at most `most`.

        `num_computed`: where in its prompt the furthest of the candidates is; attention costs more
        there.
        """
        if self._target_s == 0:
            return most
        if decodes.num_decodes == 0:
            num_tokens = self._tokens_within(_LONGEST_S, num_computed, most)
            return min(max(num_tokens, _FULL_TOKENS), most)
        decode_s = self._model.predict_s(decodes)
        target_s = _suitable_s(decode_s) if self._target_s is None else self._target_s
        aim = max(1 / (1 + _ERRORS_BELOW * self._model.usual_error), _LEAST_AIM)
        room_s = max(target_s * aim - decode_s, _PREFILL_SHARE * decode_s)
        num_tokens = self._tokens_within(room_s, num_computed, most)
        return min(max(num_tokens, self._block_size), most)

    def draft_price(self, decodes: StepLoad) -> float:
        """What one more row to verify costs, in tokens that could be decoded in the same time."""
        step_s = self._model.predict_s(decodes)
        return self._model.draft_s * decodes.num_decodes / step_s if step_s > 0 else 0.0

    def _tokens_within(self, room_s: float, num_computed: int, most: int) -> int:
        """The largest n for which n tokens from `num_computed` on fit: n is the root of
        pair_s / 2 * n^2 + (token_s + pair_s * num_computed) * n = room_s.
        """
        pair_s = self._model.prefill_pair_s
        linear_s = self._model.prefill_token_s + pair_s * num_computed
        divisor = linear_s + (linear_s * linear_s + 2 * pair_s * room_s) ** 0.5
        return int(min(2 * room_s / divisor, most)) if divisor > 0 else most


def _suitable_s(decode_s: float) -> float:
    """The target where decoding alone takes so long."""
    target_s = min(max(_AUTO_FACTOR * decode_s, _AUTO_LEAST_S), _AUTO_MOST_S)
    return max(target_s, _AUTO_LEAST_FACTOR * decode_s)
