"""The launcher's own first request, against a small real HTTP server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster.cli_errors import CommandError, StopRequested
from cluster.ports import check_port, free_port
from cluster.probe import Endpoint, local_host


class Server(ThreadingHTTPServer):
    """Not ready for the first `not_ready` questions."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.not_ready = 0
        self.status = 200
        self.requests: list[tuple[str, Any, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, None, None))
        self.server.not_ready -= 1
        self._answer(200 if self.server.not_ready < 0 else 503, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body, self.headers.get("Authorization")))
        self._answer(self.server.status, {"choices": [{"text": " world"}]})

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join(10)


def endpoint(server: Server, key: str | None = None) -> Endpoint:
    return Endpoint("0.0.0.0", server.server_address[1], key)


def test_waits_until_ready(server: Server) -> None:
    server.not_ready = 2
    checks = []
    endpoint(server).wait_ready(30.0, lambda: checks.append(1))
    assert len(checks) == 2 and len(server.requests) == 3


def test_waiting_ends_when_the_check_says_so(server: Server) -> None:
    server.not_ready = 10**6

    def stop() -> None:
        raise StopRequested

    with pytest.raises(StopRequested):
        endpoint(server).wait_ready(30.0, stop)


def test_waiting_has_a_deadline(server: Server) -> None:
    server.not_ready = 10**6
    with pytest.raises(CommandError, match="not ready within"):
        endpoint(server).wait_ready(0.0, lambda: None)


def test_nobody_listening_is_not_ready() -> None:
    assert not Endpoint("127.0.0.1", free_port("127.0.0.1"), None).is_ready()


def test_first_token_is_one_greedy_token(server: Server) -> None:
    assert endpoint(server, "key").first_token("demo") == " world"
    [(path, body, authorization)] = server.requests
    assert path == "/v1/completions" and authorization == "Bearer key"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("demo", 1, 0)


def test_refusal_carries_the_servers_words(server: Server) -> None:
    server.status = 503
    with pytest.raises(CommandError, match=r"503.*choices"):
        endpoint(server).first_token("demo")


@pytest.mark.parametrize(
    ("listens", "reached"),
    [("0.0.0.0", "127.0.0.1"), ("", "127.0.0.1"), ("::", "::1"), ("10.1.2.3", "10.1.2.3")],
)
def test_where_a_local_client_connects(listens: str, reached: str) -> None:
    assert local_host(listens) == reached


def test_taken_port_is_refused_with_its_flag(server: Server) -> None:
    with pytest.raises(CommandError, match="choose another --port"):
        check_port("127.0.0.1", server.server_address[1], "--port")


def test_unknown_host_is_refused() -> None:
    with pytest.raises(CommandError, match=r"no\.such\.host\.invalid"):
        check_port("no.such.host.invalid", 8000, "--port")
