"""Flags of the edge: what `shoal serve` takes, and that a gateway understands what it is told."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import main, parse
from cluster.edge_options import EdgeOptions
from cluster.gateway_processes import gateway_command
from cluster.keys import key_hash
from cluster.options import ServeOptions, serve_options
from gateway.__main__ import config_from_args, parse_args
from gateway.config import CorsConfig
from gateway.tenants import key_digest, parse_hash, read_key_file
from gateway.tls import tls_files


def options(*argv: str) -> ServeOptions:
    return serve_options(parse(["serve", *argv]), {})


def as_gateway(chosen: ServeOptions) -> argparse.Namespace:
    """The gateway's own reading of the command line that it is started with."""
    return parse_args(gateway_command(chosen, 8000, "host:1")[3:])


def test_nothing_asked_for_leaves_the_gateways_defaults() -> None:
    assert options().edge == EdgeOptions()
    assert EdgeOptions().gateway_flags() == []


def test_a_gateway_is_told_all_of_it() -> None:
    chosen = options(
        *("--api-keys-file", "keys.yaml", "--usage-log", "usage.jsonl"),
        *("--max-body-bytes", "2M", "--max_header_bytes", "16K", "--limit-concurrency", "7"),
        *("--request-timeout", "2.5", "--allowed-origins", '["https://a", "https://b"]'),
        *("--allowed-methods", "GET", "POST", "--allow-credentials"),
        *("--ssl-keyfile", "k", "--ssl-certfile", "c", "--ssl-ca-certs", "a"),
        *("--ssl-cert-reqs", "2", "--open-metrics"),
    )
    args = as_gateway(chosen)
    config = config_from_args(args)
    assert (str(config.api_keys_file), str(config.usage_log)) == ("keys.yaml", "usage.jsonl")
    assert (config.max_body_bytes, args.max_header_bytes) == (2 * 1024**2, 16 * 1024)
    assert (config.limit_concurrency, config.request_timeout_s) == (7, 2.5)
    assert config.cors == CorsConfig(("https://a", "https://b"), ("GET", "POST"), ("*",), True)
    assert config.has_open_metrics and config.shows_engine_metrics
    files = tls_files(args)
    assert files is not None
    assert files.uvicorn_settings() == {
        "ssl_keyfile": "k",
        "ssl_certfile": "c",
        "ssl_ca_certs": "a",
        "ssl_cert_reqs": 2,
    }


def test_pages_of_other_origins_may_be_shut_out_by_a_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("allowed-origins: '[]'\nlimit-concurrency: 3\n")
    args = as_gateway(options("--config", str(file)))
    assert config_from_args(args).cors.allowed_origins == ()
    assert args.limit_concurrency == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ssl-keyfile", "k"], "need each other"),
        (["--ssl-keyfile", "k", "--ssl-certfile", "c", "--ssl-cert-reqs", "1"], "--ssl-ca-certs"),
    ],
)
def test_half_of_tls_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(*argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--max-body-bytes", "0"],
        ["--request-timeout", "0"],
        ["--allowed-origins", "[1]"],
        ["--allowed-origins", "[oops"],
        ["--ssl-cert-reqs", "3"],
    ],
)
def test_wrong_values_name_their_flag(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(*argv)
    assert argv[0] in capsys.readouterr().err


def test_the_launcher_has_a_key_of_its_own_wherever_keys_are_asked_for() -> None:
    assert options().probe_key == ""
    keys = {options("--api-key", "k").probe_key, options("--api-keys-file", "f").probe_key}
    assert len(keys) == 2 and "" not in keys


def test_a_new_keys_hash_opens_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new"]) == 0
    key, hashed = (line.split()[1] for line in capsys.readouterr().out.splitlines())
    assert key.startswith("sk-shoal-")
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys:\n  - name: a\n    hash: {hashed}\n")
    assert key_digest(key) in read_key_file(file)


def test_a_key_is_hashed_from_the_standard_input_where_ps_does_not_see_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "keys", "hash"],
        input="sk-secret\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert parse_hash(done.stdout) == key_digest("sk-secret")
    assert done.stdout.strip() == key_hash("sk-secret")


@pytest.mark.parametrize("key", ["", " ", "two words"])
def test_what_is_no_key_has_no_hash(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "hash", key]) == 1
    assert "one word" in capsys.readouterr().err
