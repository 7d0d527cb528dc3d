"""The gateway's settings, resolved once at start (by `python -m gateway` or a test)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    api_keys: tuple[str, ...] = ()  # none: everybody may
    max_logprobs: int = 20  # alternatives a token that a client may ask for
    default_max_tokens: int | None = None  # of a chat that names none; None: the rest of the window
    max_body_bytes: int = 32 * 1024 * 1024
    request_timeout_s: float | None = None  # from arrival to the last token
    stalled_client_timeout_s: float = 300.0  # a client that reads nothing for longer is given up
    shutdown_timeout_s: float = 30.0  # for running requests after SIGTERM
    tokenizer_threads: int = 2
    preload_interval_s: float = 1.0  # how often new models' tokenizers are looked for
