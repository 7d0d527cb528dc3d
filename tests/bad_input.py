"""Requests that a server must refuse, and how: data for tests of any gateway, in memory or live.

`bad_inputs` fits a served model; `bad_keys` a server with API keys. A row's status, `param` and
`code` are what the answer must carry.
"""

from dataclasses import dataclass, field
from typing import Any

JSON = {"content-type": "application/json"}
FORMAT, OUTPUTS = "response_format", "structured_outputs"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
# What other servers take and this one would have to drop silently.
REFUSED: list[tuple[str, Any]] = [
    ("use_beam_search", True),
    ("best_of", 3),
    ("length_penalty", 0.5),
    ("echo", True),
    ("documents", [{"text": "a"}]),
    ("repetition_detection", {"max_pattern_size": 3}),
    ("stream_interval", 4),
    ("lora_path", "a"),
    ("modalities", ["text", "audio"]),
    ("return_tokens_as_token_ids", True),
    ("return_prompt_text", True),
    ("mm_processor_kwargs", {"a": 1}),
    ("kv_transfer_params", {"a": 1}),
    ("logprob_token_ids", [1]),
    ("prompt_embeds", "AA=="),
    ("functions", [{"name": "f"}]),
    ("stop_regex", "a+"),
    ("web_search_options", {"a": 1}),
]


@dataclass(frozen=True, slots=True)
class BadInput:
    name: str
    method: str
    path: str
    body: Any  # bytes are sent as they are, None is no body, all else as JSON
    status: int
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))


def bad_inputs(model: str, max_model_len: int, vocab_size: int) -> list[BadInput]:
    chat = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    text = {"model": model, "prompt": "hi", "max_tokens": 4}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

    def bad_chat(name: str, param: str | None, code: str | None = None, **fields: Any) -> BadInput:
        return BadInput(f"chat {name}", "POST", CHAT, {**chat, **fields}, 400, param, code)

    def bad_text(name: str, param: str | None, code: str | None = None, **fields: Any) -> BadInput:
        return BadInput(f"text {name}", "POST", TEXT, {**text, **fields}, 400, param, code)

    def messages(*contents: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": content} for content in contents]

    def json_schema(schema: Any) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}

    def nested(levels: int) -> dict[str, Any]:
        return {"items": nested(levels - 1)} if levels else {}

    impossible = {"type": "string", "minLength": 5, "maxLength": 2}
    broken_tool = {"type": "function", "function": {"name": "b", "parameters": {"type": "objct"}}}
    too_long = [5] * (max_model_len + 1)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    return [
        # bodies
        BadInput("body is no JSON", "POST", CHAT, b'{"model": ', 400),
        BadInput("body is empty", "POST", CHAT, b"", 400),
        BadInput("body is a list", "POST", TEXT, [1], 400),
        BadInput("body is no UTF-8", "POST", TEXT, b'{"prompt": "\xff\xfe"}', 400),
        BadInput(
            "body is no JSON by its type",
            "POST",
            TEXT,
            b"x=1",
            400,
            headers={"content-type": "a/b"},
        ),
        BadInput("body nests deep", "POST", TEXT, b"[" * 100_000, 400),
        # where
        BadInput("unknown route", "GET", "/v1/nothing", None, 404, None, "unknown_url"),
        BadInput("wrong method", "GET", CHAT, None, 405),
        BadInput(
            "unknown model card", "GET", "/v1/models/no", None, 404, "model", "model_not_found"
        ),
        BadInput(
            "unknown model", "POST", CHAT, {**chat, "model": "no"}, 404, "model", "model_not_found"
        ),
        BadInput(
            "unknown model, text",
            "POST",
            TEXT,
            {**text, "model": "no"},
            404,
            "model",
            "model_not_found",
        ),
        # messages
        BadInput("chat without messages", "POST", CHAT, {"model": model}, 400, "messages"),
        bad_chat("messages are text", "messages", messages="hi"),
        bad_chat("messages are empty", "messages", messages=[]),
        bad_chat("message is text", "messages[0]", messages=["hi"]),
        bad_chat("message has no role", "messages[0].role", messages=[{"content": "hi"}]),
        bad_chat("role is a number", "messages[0].role", messages=[{"role": 1, "content": "hi"}]),
        bad_chat("content is a number", "messages[1].content", messages=messages("hi", 5)),
        bad_chat("part without type", "messages[0].content[0].type", messages=messages([{"a": 1}])),
        bad_chat("image", "messages[0].content[0]", messages=messages([image])),
        bad_chat("unknown part", "messages[0].content[0]", messages=messages([{"type": "x"}])),
        bad_chat("lone surrogate", "messages", messages=messages("\ud800")),
        bad_chat(
            "too long",
            "messages",
            "context_length_exceeded",
            messages=messages("a b " * max_model_len),
        ),
        # who
        bad_chat("user is no Unicode", "user", user="\ud800"),
        bad_chat("user is long", "user", user="u" * 1025),
        # prompt
        BadInput("text without prompt", "POST", TEXT, {"model": model}, 400, "prompt"),
        bad_text("prompt is a number", "prompt", prompt=5),
        bad_text("prompt is empty", "prompt", prompt=""),
        bad_text("prompts are none", "prompt", prompt=[]),
        bad_text("a prompt is empty", "prompt", prompt=["hi", ""]),
        bad_text("ids and text mixed", "prompt", prompt=[5, "hi"]),
        bad_text("id out of vocabulary", "prompt", prompt=[5, vocab_size]),
        bad_text("negative id", "prompt", prompt=[[5, -1]]),
        bad_text("too many prompts", "prompt", prompt=["hi"] * 1025),
        bad_text("too long", "prompt", "context_length_exceeded", prompt=too_long),
        # numbers
        bad_chat("temperature too high", "temperature", temperature=2.1),
        bad_chat("temperature negative", "temperature", temperature=-0.1),
        bad_chat("temperature is text", "temperature", temperature="1"),
        bad_chat("temperature is a truth value", "temperature", temperature=True),
        BadInput(
            "temperature is NaN",
            "POST",
            TEXT,
            f'{{"model": "{model}", "prompt": "hi", "temperature": NaN}}'.encode(),
            400,
            "temperature",
        ),
        bad_chat("top_p zero", "top_p", top_p=0),
        bad_chat("top_p above one", "top_p", top_p=1.01),
        bad_chat("top_k below -1", "top_k", top_k=-2),
        bad_chat("top_k is a fraction", "top_k", top_k=1.5),
        bad_chat("min_p above one", "min_p", min_p=2),
        bad_chat("presence_penalty too low", "presence_penalty", presence_penalty=-2.5),
        bad_chat("frequency_penalty too high", "frequency_penalty", frequency_penalty=3),
        bad_chat("repetition_penalty zero", "repetition_penalty", repetition_penalty=0),
        bad_chat("max_tokens zero", "max_tokens", max_tokens=0),
        bad_chat("max_tokens negative", "max_tokens", max_tokens=-1),
        bad_chat("max_tokens beyond the window", "max_tokens", max_tokens=max_model_len + 1),
        bad_chat("max_completion_tokens zero", "max_completion_tokens", max_completion_tokens=0),
        bad_text("max_tokens zero without echo", "max_tokens", max_tokens=0),
        bad_text("min_tokens above max_tokens", "min_tokens", min_tokens=5),
        bad_chat("n zero", "n", n=0),
        bad_chat("n huge", "n", n=10_000),
        bad_text("n times prompts huge", "n", n=128, prompt=["hi"] * 100),
        bad_chat("seed beyond int64", "seed", seed=2**63),
        bad_chat("seed is a fraction", "seed", seed=1.5),
        bad_chat("priority is text", "priority", priority="high"),
        bad_chat(
            "truncation beyond the window", "truncate_prompt_tokens", truncate_prompt_tokens=10**6
        ),
        bad_chat("truncation of no side", "truncation_side", truncation_side="middle"),
        # stops, ids and words
        bad_chat("stop is a number", "stop", stop=5),
        bad_chat("stop is empty", "stop", stop=""),
        bad_chat("a stop is empty", "stop", stop=["a", ""]),
        bad_chat("too many stops", "stop", stop=["a"] * 17),
        bad_chat("stop id out of vocabulary", "stop_token_ids", stop_token_ids=[vocab_size]),
        bad_chat("stop ids are text", "stop_token_ids[0]", stop_token_ids=["a"]),
        bad_chat("no id allowed", "allowed_token_ids", allowed_token_ids=[]),
        bad_chat("allowed id out of vocabulary", "allowed_token_ids", allowed_token_ids=[10**9]),
        bad_chat("bias of no id", "logit_bias", logit_bias={"hello": 1}),
        bad_chat("bias out of vocabulary", "logit_bias", logit_bias={str(vocab_size): 1}),
        bad_chat("bias is text", "logit_bias.5", logit_bias={"5": "much"}),
        bad_chat("bad word is empty", "bad_words", bad_words=[""]),
        # log-probabilities
        bad_chat("top_logprobs without logprobs", "top_logprobs", top_logprobs=2),
        bad_chat("top_logprobs too many", "top_logprobs", logprobs=True, top_logprobs=1000),
        bad_chat("logprobs is a number", "logprobs", logprobs=1),
        bad_text("logprobs too many", "logprobs", logprobs=1000),
        bad_text("logprobs negative", "logprobs", logprobs=-1),
        bad_text("prompt_logprobs in a stream", "prompt_logprobs", prompt_logprobs=1, stream=True),
        # streams and modes
        bad_chat("stream is text", "stream", stream="yes"),
        bad_chat("stream options alone", "stream_options", stream_options={"include_usage": True}),
        # constraints
        bad_chat("no schema", FORMAT + ".json_schema", response_format={"type": "json_schema"}),
        bad_chat("bad schema", FORMAT, response_format=json_schema({"type": "objct"})),
        bad_chat("impossible schema", FORMAT, response_format=json_schema(impossible)),
        bad_chat("remote schema", FORMAT, response_format=json_schema({"$ref": "http://a/b"})),
        bad_chat("deep schema", FORMAT, response_format=json_schema(nested(70))),
        bad_chat("large schema", FORMAT, response_format=json_schema({"enum": ["x" * 70_000]})),
        bad_chat("structural tag", FORMAT, response_format={"type": "structural_tag"}),
        bad_chat("regex and tools", OUTPUTS, tools=[tool], structured_outputs={"regex": "a"}),
        bad_chat("no constraint", OUTPUTS, structured_outputs={}),
        bad_text("two constraints", OUTPUTS, structured_outputs={"regex": "a", "choice": ["a"]}),
        bad_text("bad regex", OUTPUTS, structured_outputs={"regex": "a(b"}),
        bad_text("NUL in a regex", OUTPUTS, structured_outputs={"regex": "a\0b"}),
        bad_text("grammar without a start", OUTPUTS, structured_outputs={"grammar": 'a: "b"'}),
        bad_text("grammar with a loose end", OUTPUTS, structured_outputs={"grammar": "root ::= ("}),
        bad_text("older name", "guided_regex", guided_regex="a(b"),
        bad_text("tag of no kind", OUTPUTS, structured_outputs={"structural_tag": {"format": {}}}),
        bad_text("no choice", OUTPUTS, structured_outputs={"choice": []}),
        bad_text("schema is no JSON", OUTPUTS, structured_outputs={"json": "{"}),
        bad_text("schema is a number", OUTPUTS, structured_outputs={"json": "5"}),
        bad_chat("unknown format", "response_format.type", response_format={"type": "xml"}),
        bad_text("suffix", "suffix", suffix="end"),
        bad_text("suffix of ids", "suffix", suffix="end", prompt=[5]),
        bad_text("best_of below n", "best_of", best_of=2, n=3),
        bad_text("best_of in a stream", "best_of", best_of=2, stream=True),
        bad_text("best_of huge", "best_of", best_of=129),
        bad_text("best_of times prompts huge", "best_of", best_of=128, prompt=["hi"] * 100),
        # known, and not honoured
        *(bad_chat(f"{name} is not honoured", name, **{name: value}) for name, value in REFUSED),
        bad_chat("timeout zero", "timeout", timeout=0),
        bad_chat("timeout of a year", "timeout", timeout=3e7),
        # tools and templates
        bad_chat("tools are empty", "tools", tools=[]),
        bad_chat("tool without a name", "tools[0].function.name", tools=[{**tool, "function": {}}]),
        bad_chat("tool_choice without tools", "tool_choice", tool_choice="auto"),
        bad_chat(
            "tool_choice of no tool",
            "tool_choice",
            tools=[tool],
            tool_choice={"type": "function", "function": {"name": "subtract"}},
        ),
        bad_chat(
            "forced tool with a bad schema",
            "tools[1].function.parameters",
            tools=[tool, broken_tool],
            tool_choice="required",
        ),
        bad_chat("continue and prompt", "continue_final_message", continue_final_message=True),
        bad_chat(
            "reserved variable", "chat_template_kwargs", chat_template_kwargs={"messages": []}
        ),
        bad_chat("own template", "chat_template", chat_template="{{ 1 }}"),
        # tokens
        BadInput("tokenize nothing", "POST", "/tokenize", {"model": model}, 400, "prompt"),
        BadInput(
            "detokenize text", "POST", "/detokenize", {"model": model, "tokens": "a"}, 400, "tokens"
        ),
        BadInput(
            "detokenize out of vocabulary",
            "POST",
            "/v1/detokenize",
            {"model": model, "tokens": [vocab_size]},
            400,
            "tokens",
        ),
    ]


def bad_keys(model: str) -> list[BadInput]:
    body = {"model": model, "prompt": "hi"}

    def refused(name: str, **headers: str) -> BadInput:
        code = "invalid_api_key"
        return BadInput(name, "POST", TEXT, body, 401, None, code, {**JSON, **headers})

    return [
        refused("no key"),
        refused("wrong key", authorization="Bearer sk-wrong"),
        refused("empty key", authorization="Bearer "),
        refused("another scheme", authorization="Basic c2VjcmV0"),
        BadInput(
            "models without a key", "GET", "/v1/models", None, 401, None, "invalid_api_key", {}
        ),
        BadInput(
            "metrics without a key", "GET", "/metrics", None, 401, None, "invalid_api_key", {}
        ),
    ]
