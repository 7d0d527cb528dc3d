"""Data between the text side of the gateway and its network side: token ids and what belongs to
them.

The text side (routes, generation) makes a TokenRequest and reads TokenDeltas; the network side
(router, clients) turns them into messages. No protobuf and no HTTP here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """A language that the output is held to. Meanings as in protos/common.proto."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str
    param: str = field(default="", compare=False)  # the request's field it comes from
    # tried before the whole, so that a refusal names the smallest field that is wrong
    parts: "tuple[Grammar, ...]" = field(default=(), compare=False)
    # tried instead of `text`, where that names tokens of the model; empty: nothing is left to try
    trial: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Validated and resolved: no field means "ask the model's defaults". Meanings as in
    protos/common.proto.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One choice of one request: n > 1 makes n of these, each with a seed of its own."""

    request_id: str
    model: str  # a served name
    prompt_token_ids: list[int]
    sampling: SamplingSettings
    priority: int = 0
    tenant: str = ""
    cache_salt: str = ""
    timeout_s: float | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]  # (id, logprob), most likely first


@dataclass(frozen=True, slots=True)
class Timing:
    num_cached_tokens: int = 0
    placement_s: float = 0.0  # in the cluster's placement queue
    queue_s: float = 0.0  # in the engine's queue
    prefill_s: float = 0.0
    decode_s: float = 0.0
    num_preemptions: int = 0
    engine: str = ""  # the replica


@dataclass(slots=True)
class TokenDelta:
    """What one engine step brought for one request, or several plain ones that waited.

    Treated as immutable by who takes it, but not frozen: one is made a token, and a frozen
    dataclass takes three times as long to build.
    """

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None  # one a token where asked for
    prompt_logprobs: list[TokenLogprobs] | None = None  # once, positions 1 .. prompt length - 1
    timing: Timing | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A deployed model as the gateway knows it."""

    deployment: str
    served_names: tuple[str, ...]
    root: str
    digest: str  # of its text files
    max_model_len: int
    block_size: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    created_unix_s: int
    max_logprobs: int


class TokenStream(Protocol):
    """One running request. `abort` may be called at any time, even at the end."""

    def take(self) -> list[TokenDelta]:
        """All deltas since the last call; without waiting, so there may be none. The last delta of
        a request has a finish_reason.

        Raises: gateway.errors.APIError when the request failed for good; what came before the
        failure is given out first.
        """
        ...

    def listen(self, listener: Callable[[], None] | None) -> None:
        """`listener` is called on the event loop whenever there is something to take (deltas or
        the failure), within the very call that brought it. It must not raise. One at a time."""
        ...

    def abort(self) -> None:
        """Free the request's blocks by the next step. Idempotent."""
        ...


class TokenRouter(Protocol):
    """Starts requests somewhere in the cluster and keeps them going when a replica is lost."""

    async def start(self, request: TokenRequest) -> TokenStream:
        """Returns as soon as the request is accepted for routing.

        Raises: gateway.errors.APIError (no such model, no replica, overloaded with retry advice).
        """
        ...


class ClusterView(Protocol):
    """The gateway's latest knowledge of the cluster; never blocks."""

    def models(self) -> list[ModelInfo]: ...

    def model(self, served_name: str) -> ModelInfo | None: ...

    def replica_ids(self) -> frozenset[str] | None:
        """Of all models; None: nothing is known of the cluster yet."""
        ...

    def unhealthy_reason(self) -> str | None:
        """None if every model has a replica that makes progress; else a sentence for /health and
        /readyz.
        """
        ...

    async def engine_metrics(self) -> bytes:
        """The control plane's metrics as Prometheus reads them; empty while it is away."""
        ...

    async def model_files(self, digest: str) -> dict[str, bytes]:
        """Tokenizer, chat template, generation defaults by file name; fetched once a digest."""
        ...
