"""The gateway's settings, resolved once at start (by `python -m gateway` or a test)."""

from dataclasses import dataclass, field
from pathlib import Path

from gateway.parsers.registry import ParserNames


@dataclass(frozen=True, slots=True)
class CorsConfig:
    """Which web pages of other origins may call; "*": all. The key is still asked for."""

    allowed_origins: tuple[str, ...] = ("*",)
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    api_keys: tuple[str, ...] = ()  # as they are, or as sha256:...; none and no file: everybody may
    probe_key: str = (
        ""  # the launcher's own, as sha256:...; it opens nothing that keys do not close
    )
    api_keys_file: Path | None = None
    keys_check_interval_s: float = 1.0  # how often the file is looked at
    shared_folder: Path | None = None  # where gateways of one machine count tenants' use together
    usage_log: Path | None = None
    has_open_metrics: bool = False  # /metrics asks for no key
    shows_engine_metrics: bool = True  # in /metrics; once is enough where there are many gateways
    cors: CorsConfig = field(default_factory=CorsConfig)
    max_logprobs: int = 20  # alternatives a token that a client may ask for
    default_max_tokens: int | None = None  # of a chat that names none; None: the rest of the window
    max_body_bytes: int = 32 * 1024 * 1024
    body_timeout_s: float = 60.0  # without a byte of a body that is not complete
    limit_concurrency: int | None = None  # requests at once in this process
    request_timeout_s: float | None = None  # from arrival to the last token
    stalled_client_timeout_s: float = 300.0  # a client that reads nothing for longer is given up
    shutdown_timeout_s: float = 30.0  # for running requests after SIGTERM
    tokenizer_threads: int = 2
    parsers: ParserNames = field(default_factory=ParserNames)  # of tool calls and thoughts
    preload_interval_s: float = 1.0  # how often new models' tokenizers are looked for
