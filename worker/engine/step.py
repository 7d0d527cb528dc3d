"""What one step computes and what came of it: pure data between the engine, the executor and every
rank.

A plan is self-contained for followers: it carries the token ids to compute, so no rank needs to
know what another sampled. A sequence may end in guesses (`num_drafts`): each is verified by what is
sampled at its place, and the first wrong one ends what the step brings. `slot` is a small integer
that stands for a request in the runner's persistent tables (block table, sampler state) from its
admission to its release.
"""

from dataclasses import dataclass, field

from worker.engine.sampling_params import SamplingParams

# In a plan: what the plan before has sampled for the slot, which only the ranks know yet.
UNKNOWN_TOKEN = -1


@dataclass(frozen=True, slots=True)
class AdmittedSequence:
    """A sequence that enters the batch, for the first time or after a preemption."""

    slot: int
    prompt_token_ids: list[int]
    output_token_ids: list[int]  # generated before: by this engine until a preemption, or elsewhere
    sampling: SamplingParams
    num_prompt_logprobs_done: int = 0  # prompt positions already reported


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The tokens of one sequence in one step: positions start .. start + num_tokens - 1."""

    slot: int
    start: int  # tokens of this sequence already in the KV cache
    num_tokens: int
    new_block_ids: list[int]  # appended to the slot's block table before the step
    is_sampled: bool  # the newest known token is among these: sample its successor
    num_drafts: int = 0  # the last of these tokens are guesses at what is sampled


@dataclass(frozen=True, slots=True)
class StepPlan:
    step: int
    token_ids: list[int]  # of all sequences, one after another
    sequences: list[ScheduledSequence]
    admitted: list[AdmittedSequence] = field(default_factory=list)
    released: list[int] = field(default_factory=list)  # slots, freed before `admitted` is applied
    # The next plan may have unknown tokens: every rank keeps what is sampled, on its device.
    keeps_samples: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of one position, from the raw logits (before temperature, penalties and masks)."""

    token_id: int
    logprob: float
    rank: int  # 1: the most likely
    top_ids: list[int]  # most likely first
    top_logprobs: list[float]


@dataclass(frozen=True, slots=True)
class StepResult:
    """`token_ids` are those of the plan's sampled sequences, one after another in plan order;
    `logprobs` are aligned with them.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None = None  # None: nobody asked
    # slot -> this chunk's
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    # slot -> why its sequence cannot go on; its token means nothing
    failed: dict[int, str] = field(default_factory=dict)
    # of each sampled sequence: none while it is not known what may come next, several where guesses
    # were right or a grammar leaves one way to go on; None: one
    num_tokens: list[int] | None = None
