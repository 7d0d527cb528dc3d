"""What `shoal serve` was asked for at the edge of its HTTP port, and how a gateway is told. Plain
data: `cluster.edge_arguments` makes it from flags."""

import json
from dataclasses import dataclass

from protos.answer_parsers import AUTO


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """Immutable. None: the gateway's own default."""

    api_keys_file: str | None = None
    usage_log: str | None = None
    open_metrics: bool = False
    max_body_bytes: int | None = None
    max_header_bytes: int | None = None
    limit_concurrency: int | None = None
    request_timeout_s: float | None = None
    allowed_origins: tuple[str, ...] = ("*",)
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: int = 0
    tool_call_parser: str = AUTO
    reasoning_parser: str = AUTO

    @property
    def needs_client_certificate(self) -> bool:
        return self.ssl_cert_reqs == 2

    def gateway_flags(self) -> list[str]:
        """The part of a gateway's command line that differs from its defaults."""
        values: dict[str, str | int | float | None] = {
            "--api-keys-file": self.api_keys_file,
            "--usage-log": self.usage_log,
            "--max-body-bytes": self.max_body_bytes,
            "--max-header-bytes": self.max_header_bytes,
            "--limit-concurrency": self.limit_concurrency,
            "--request-timeout": self.request_timeout_s,
            "--ssl-keyfile": self.ssl_keyfile,
            "--ssl-certfile": self.ssl_certfile,
            "--ssl-ca-certs": self.ssl_ca_certs,
            "--ssl-cert-reqs": self.ssl_cert_reqs or None,
            "--tool-call-parser": None if self.tool_call_parser == AUTO else self.tool_call_parser,
            "--reasoning-parser": None if self.reasoning_parser == AUTO else self.reasoning_parser,
        }
        for name in ("origins", "methods", "headers"):
            allowed: tuple[str, ...] = getattr(self, f"allowed_{name}")
            values[f"--allowed-{name}"] = None if allowed == ("*",) else json.dumps(allowed)
        flags = [f"{flag}={value}" for flag, value in values.items() if value is not None]
        switches = {
            "--allow-credentials": self.allow_credentials,
            "--open-metrics": self.open_metrics,
        }
        return flags + [flag for flag, is_on in switches.items() if is_on]
