"""In-memory implementations of gateway/tokens.py: token streams that follow a script."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway import wire
from gateway.errors import APIError, ModelNotFoundError
from gateway.text.tokenizer import TextTokenizer
from gateway.tokens import ModelInfo, Timing, TokenDelta, TokenLogprobs, TokenRequest
from tests.gateway.small_tokenizer import EOS_ID, byte_level_json, model_files

MODEL = ModelInfo(
    deployment="tiny",
    served_names=("tiny", "org/tiny-alias"),
    root="/models/tiny",
    digest="d1ge57d1ge57d1ge57",
    max_model_len=128,
    block_size=16,
    vocab_size=400,
    eos_token_ids=(EOS_ID,),
    created_unix_s=1_700_000_000,
    max_logprobs=20,
)


class FakeView:
    def __init__(self, *models: ModelInfo, files: dict[str, bytes] | None = None) -> None:
        self.known = list(models) or [MODEL]
        self.files = model_files() if files is None else files
        self.reason: str | None = None
        self.replicas: frozenset[str] | None = None
        self.num_fetches = 0
        self.exposition = b""

    def models(self) -> list[ModelInfo]:
        return self.known

    def model(self, served_name: str) -> ModelInfo | None:
        return next((model for model in self.known if served_name in model.served_names), None)

    def replica_ids(self) -> frozenset[str] | None:
        return self.replicas

    def unhealthy_reason(self) -> str | None:
        return self.reason

    async def engine_metrics(self) -> bytes:
        return self.exposition

    async def model_files(self, digest: str) -> dict[str, bytes]:
        self.num_fetches += 1
        await asyncio.sleep(0)
        return self.files


@dataclass
class FakeStream:
    """Gives out its deltas, one list a turn of the loop while somebody listens; an APIError in the
    script is raised. With the script at its end and nothing finished it waits, as an engine at work
    would."""

    script: list[list[TokenDelta] | APIError]
    is_aborted: bool = False
    waits: asyncio.Event = field(default_factory=asyncio.Event)  # set while it has nothing to give
    _arrived: list[list[TokenDelta] | APIError] = field(default_factory=list)
    _num_given: int = 0
    _listener: Callable[[], None] | None = None

    def listen(self, listener: Callable[[], None] | None) -> None:
        if self._listener is None and listener is not None:
            asyncio.get_running_loop().call_soon(self.bring)
        self._listener = listener

    def take(self) -> list[TokenDelta]:
        if not self._arrived:
            return []
        step = self._arrived.pop(0)
        if isinstance(step, APIError):
            raise step
        return step

    def abort(self) -> None:
        self.is_aborted = True

    def bring(self) -> None:
        if self._listener is None:
            return
        if self._arrived:
            self._listener()  # it was not taken the last time
        elif self._num_given < len(self.script):
            self._arrived.append(self.script[self._num_given])
            self._num_given += 1
            self._listener()
        else:
            self.waits.set()
            return
        asyncio.get_running_loop().call_soon(self.bring)


Script = Callable[[TokenRequest], list[list[TokenDelta] | APIError]]


class FakeRouter:
    """Starts every request on the stream its script makes, and remembers both."""

    def __init__(self, script: Script | None = None) -> None:
        self.script: Script = script or says("hello world")
        self.requests: list[TokenRequest] = []
        self.streams: list[FakeStream] = []
        self.refusal: APIError | None = None

    async def start(self, request: TokenRequest) -> FakeStream:
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        if request.model not in MODEL.served_names:
            raise ModelNotFoundError(request.model)
        wire.submit(request, 1, [], None)  # as the real one must: what no message can hold, fails
        self.requests.append(request)
        stream = FakeStream(self.script(request))
        self.streams.append(stream)
        return stream

    @property
    def request(self) -> TokenRequest:
        (only,) = self.requests
        return only


def tokenizer() -> TextTokenizer:
    return TextTokenizer(byte_level_json())


def ids_of(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


def says(text: str | list[int], *, group: int = 1, ends: bool = True) -> Script:
    """An engine that answers `text` and </s> within max_tokens, `group` tokens a read."""
    ids = [*(ids_of(text) if isinstance(text, str) else text), EOS_ID]

    def script(request: TokenRequest) -> list[list[TokenDelta] | APIError]:
        limit = request.sampling.max_tokens
        is_cut = len(ids) > limit
        deltas = [_delta(id_, request, is_first=not place) for place, id_ in enumerate(ids[:limit])]
        if ends:
            last = deltas[-1]
            deltas[-1] = TokenDelta(
                last.token_ids,
                finish_reason="length" if is_cut else "stop",
                logprobs=last.logprobs,
                prompt_logprobs=last.prompt_logprobs,
                timing=Timing(3, 0.001, 0.002, 0.003, 0.004, engine="r0"),
            )
        else:
            deltas.pop()  # </s>
        return [deltas[place : place + group] for place in range(0, len(deltas), group)]

    return script


def _delta(token_id: int, request: TokenRequest, *, is_first: bool) -> TokenDelta:
    sampling = request.sampling
    return TokenDelta(
        [token_id],
        logprobs=None if sampling.logprobs is None else [scores(token_id, sampling.logprobs)],
        prompt_logprobs=[
            scores(id_, sampling.prompt_logprobs or 0) for id_ in request.prompt_token_ids[1:]
        ]
        if is_first and sampling.prompt_logprobs is not None
        else None,
        timing=Timing(num_cached_tokens=3, engine="r0") if is_first else None,
    )


def scores(token_id: int, num_top: int) -> TokenLogprobs:
    """The token is the most likely one; then come the next ids."""
    top = [(token_id + place, -0.5 - place) for place in range(num_top)]
    return TokenLogprobs(token_id, -0.5, 1, top)
