"""What the sampler makes of a step's logits."""

from dataclasses import dataclass, field

from worker.engine.step import TokenLogprobs

Logprobs = list[TokenLogprobs | None] | None


@dataclass(frozen=True, slots=True)
class Sampled:
    """Of S sequences, one after another, as in `StepResult`."""

    token_ids: list[int]
    logprobs: Logprobs = None  # a token each; None: nobody asked
    num_tokens: list[int] | None = None  # [S]; None: one each
    failed: dict[int, str] = field(default_factory=dict)  # slot -> why it cannot go on
