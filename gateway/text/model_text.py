"""The text side of a deployed model: tokenizer, chat template and generation defaults.

`TextModel` is built from the files the cluster hands out by digest; `TextModels` keeps the built
ones and runs long encodings beside the event loop. Routes ask `TextModels`.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from jinja2 import TemplateError

from gateway.errors import APIError, EngineError, UnavailableError
from gateway.parsers.reasoning import ReasoningFormat
from gateway.parsers.registry import AUTO, ParserNames, choose_formats
from gateway.parsers.tool_format import ToolFormat
from gateway.text.chat_template import (
    DEFAULT_STOPS,
    DEFAULT_TEMPLATE,
    ChatOptions,
    ChatTemplate,
    Message,
)
from gateway.text.infill import Infill, find_infill
from gateway.text.mark_tokens import MarkTokens
from gateway.text.tokenizer import TextTokenizer
from gateway.tokens import ClusterView, ModelInfo

logger = logging.getLogger(__name__)
T = TypeVar("T")

_SPECIAL_TOKEN_NAMES = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
)


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What the model's authors recommend; None: OpenAI's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def from_json(cls, data: bytes | None) -> "GenerationDefaults":
        fields = _json_object(data)
        top_k = fields.get("top_k")
        return cls(
            temperature=_number(fields, "temperature", 0.0, 2.0),
            top_p=_number(fields, "top_p", 1e-6, 1.0),
            top_k=top_k if isinstance(top_k, int) and top_k >= 0 else None,
            min_p=_number(fields, "min_p", 0.0, 1.0),
            repetition_penalty=_number(fields, "repetition_penalty", 1e-6, 1e6),
        )


@dataclass(frozen=True, slots=True)
class TextModel:
    """Immutable; safe from any thread."""

    tokenizer: TextTokenizer
    defaults: GenerationDefaults
    templates: Mapping[str, ChatTemplate]  # "default", and "tool_use" where the model has one
    has_own_template: bool
    tool_format: ToolFormat
    reasoning_format: ReasoningFormat | None  # None: the model does not think
    marks: MarkTokens
    thought_mark_ids: frozenset[int]  # special tokens that are part of how it thinks,
    call_mark_ids: frozenset[int]  # and of how it writes calls
    infill: Infill | None = None  # None: the model cannot fill in the middle

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], parsers: ParserNames = AUTO) -> "TextModel":
        """Raises: EngineError when the files make no usable text side."""
        if "tokenizer.json" not in files:
            raise EngineError("The model has no tokenizer.json, so its text cannot be served.")
        config = _json_object(files.get("tokenizer_config.json"))
        sources = _template_sources(files, config)
        try:
            templates = {
                name: ChatTemplate(source, _special_tokens(config))
                for name, source in (sources or {"default": DEFAULT_TEMPLATE}).items()
            }
        except TemplateError as error:
            raise EngineError(f"The model's chat template does not compile: {error}") from error
        try:
            tokenizer = TextTokenizer(files["tokenizer.json"])
        except Exception as error:  # the library raises a bare Exception
            raise EngineError(f"The model's tokenizer.json cannot be read: {error}") from error
        tool_format, reasoning_format = choose_formats(
            parsers, sources.values(), tokenizer.added_tokens.values()
        )
        marks = MarkTokens(tokenizer.added_tokens)
        thought_marks = () if reasoning_format is None else reasoning_format.all_marks
        return cls(
            tokenizer=tokenizer,
            defaults=GenerationDefaults.from_json(files.get("generation_config.json")),
            templates=templates,
            has_own_template=bool(sources),
            tool_format=tool_format,
            reasoning_format=reasoning_format,
            marks=marks,
            thought_mark_ids=marks.ids_in(thought_marks) & tokenizer.special_ids,
            call_mark_ids=marks.ids_in(tool_format.all_marks) & tokenizer.special_ids,
            infill=find_infill(tokenizer.added_tokens.values()),
        )

    @property
    def chat_stops(self) -> tuple[str, ...]:
        return () if self.has_own_template else DEFAULT_STOPS

    def mark_ids(self, *, has_tools: bool) -> frozenset[int]:
        """The special tokens that must not be hidden, for they are read."""
        return self.thought_mark_ids | self.call_mark_ids if has_tools else self.thought_mark_ids

    def encode_chat(
        self, messages: list[Message], options: ChatOptions, add_special_tokens: bool | None
    ) -> list[int]:
        return self.encode_prompt(self.render_chat(messages, options), add_special_tokens)

    def render_chat(self, messages: list[Message], options: ChatOptions) -> str:
        """Raises: InvalidRequestError."""
        name = "tool_use" if options.tools and "tool_use" in self.templates else "default"
        return self.templates[name].render(messages, options)

    def encode_prompt(self, text: str, add_special_tokens: bool | None) -> list[int]:
        """A model's own template writes its special tokens itself; the default one leaves them to
        the tokenizer, as a plain completion does."""
        if add_special_tokens is None:
            add_special_tokens = not self.has_own_template
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens, param="messages")


class TextModels:
    """Built text models by digest. Owned by the event loop; the threads only run pure functions."""

    # A hop to the pool and back was measured at 50-110 us, what encoding some hundred characters
    # costs: requests up to this size are faster encoded here.
    _MAX_INLINE_BYTES = 2048
    _LOAD_TIMEOUT_S = 60.0

    def __init__(
        self, view: ClusterView, num_threads: int = 2, parsers: ParserNames = AUTO
    ) -> None:
        self._view = view
        self._parsers = parsers
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="text")
        self._loads: dict[str, asyncio.Task[TextModel]] = {}

    def loaded(self, model: ModelInfo) -> TextModel | None:
        """None: `get` has to wait."""
        load = self._loads.get(model.digest)
        is_loaded = load is not None and load.done() and not load.cancelled()
        return load.result() if load and is_loaded and load.exception() is None else None

    async def get(self, model: ModelInfo) -> TextModel:
        """Raises: APIError when the files cannot be had or used."""
        load = self._loads.get(model.digest)
        if load is None or (load.done() and (load.cancelled() or load.exception() is not None)):
            load = asyncio.create_task(self._load(model.digest))
            self._loads[model.digest] = load
        # Others may wait for the same load: a client that leaves must not cancel it.
        return load.result() if load.done() else await asyncio.shield(load)

    async def run(self, num_bytes: int, work: Callable[[], T]) -> T:
        """Runs `work`, whose cost grows with the request's size, here or beside the loop."""
        if num_bytes <= self._MAX_INLINE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def preload(self) -> None:
        """Builds what the view knows and drops what it no longer does."""
        models = self._view.models()
        for digest in self._loads.keys() - {model.digest for model in models}:
            if self._loads[digest].done():
                del self._loads[digest]
        for model in models:
            try:
                await self.get(model)
            except APIError as error:
                logger.warning("text side unavailable model=%s: %s", model.deployment, error)
            except Exception:  # of one model; the others' preloading goes on
                logger.exception("text side failed model=%s", model.deployment)

    async def close(self) -> None:
        loads = list(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _load(self, digest: str) -> TextModel:
        try:
            async with asyncio.timeout(self._LOAD_TIMEOUT_S):
                files = await self._view.model_files(digest)
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(
                    self._pool, TextModel.from_files, files, self._parsers
                )
        except TimeoutError:
            raise UnavailableError("The model's tokenizer files did not arrive in time.") from None


def _template_sources(files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, str]:
    if "chat_template.jinja" in files:
        try:
            return {"default": files["chat_template.jinja"].decode()}
        except UnicodeDecodeError as error:
            raise EngineError(f"The model's chat template is not UTF-8: {error}") from error
    configured = config.get("chat_template")
    if isinstance(configured, str):
        return {"default": configured}
    if not isinstance(configured, list) or not configured:
        return {}
    try:
        named = {str(entry["name"]): str(entry["template"]) for entry in configured}
    except (TypeError, LookupError):
        raise EngineError(
            "The model's chat_template is no list of templates with a name each."
        ) from None
    named.setdefault("default", next(iter(named.values())))
    return named


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in _SPECIAL_TOKEN_NAMES:
        token = config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _json_object(data: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(data or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _number(fields: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if low <= value <= high else None
