"""How one request's tokens are chosen. Values are validated at the gateway and again when parsed
off the wire.
"""

from dataclasses import dataclass
from typing import Literal

GREEDY_BELOW = 1e-5  # temperatures under this are greedy (vLLM's convention)


@dataclass(frozen=True, slots=True)
class Grammar:
    """A language that the output is held to. Meanings as in protos/common.proto."""

    kind: Literal["json_schema", "regex", "lark", "unknown"]
    text: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling is a pure function of the logits, the request's tokens, these values and the
    position.
    """

    max_tokens: int  # output tokens, those emitted elsewhere before included
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    min_tokens: int = 0
    # the model's end-of-sequence ids included, unless ignore_eos
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()  # empty: all
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None  # None: none; 0: the sampled token's only; n: and the n most likely
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def is_self_contained(self) -> bool:
        """Whether a token follows from its logits, the seed and its position alone, and nothing but
        the token is asked for: then nobody has to look at it before the next one is computed.
        """
        return (
            self.grammar is None
            and self.logprobs is None
            and self.prompt_logprobs is None
            and self.min_tokens == 0
            and self.repetition_penalty == 1
            and not self.presence_penalty
            and not self.frequency_penalty
            and not (self.logit_bias or self.allowed_token_ids or self.bad_words)
        )
