"""The launcher as its own first client: waits until the endpoint is ready and asks for one token.

Plain `http.client`; no retries here beyond waiting for /readyz. Called by `cluster.serve`.
"""

import http.client
import json
import ssl
import time
from collections.abc import Callable

from cluster.cli_errors import CommandError

REQUEST_TIMEOUT_S = 60.0
POLL_S = 0.05


def local_host(host: str) -> str:
    """Where a client on this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


class Endpoint:
    """The endpoint as seen from this machine. Stateless: a connection per call."""

    def __init__(
        self, host: str, port: int, api_key: str | None, certificate: str | None = None
    ) -> None:
        """`certificate`: the file of the server's own, which is then the only one believed."""
        self._host = local_host(host)
        self._port = port
        self._certificate = certificate
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def is_ready(self) -> bool:
        try:
            status, _ = self._request("GET", "/readyz", None, timeout_s=5.0)
        except (OSError, http.client.HTTPException):
            return False
        return status == 200

    def wait_ready(self, timeout_s: float, check: Callable[[], None]) -> None:
        """Calls `check` between attempts: it raises when waiting on makes no sense.

        Raises: CommandError when the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            check()
            if time.monotonic() > deadline:
                raise CommandError(f"the gateway was not ready within {timeout_s:g} s")
            time.sleep(POLL_S)

    def first_token(self, model: str) -> str:
        """The text of one greedy token.

        Raises: CommandError with the server's answer when that fails.
        """
        body = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        try:
            status, answer = self._request(
                "POST", "/v1/completions", json.dumps(body), REQUEST_TIMEOUT_S
            )
        except (OSError, http.client.HTTPException) as e:
            raise CommandError(f"the endpoint did not answer: {e}") from e
        if status != 200:
            raise CommandError(f"the endpoint answered {status}: {answer[:500]}")
        return str(json.loads(answer)["choices"][0]["text"])

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._certificate is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        context = ssl.create_default_context(cafile=self._certificate)
        context.check_hostname = False  # it is issued for the name the world knows
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=timeout_s, context=context
        )

    def _request(
        self, method: str, path: str, body: str | None, timeout_s: float
    ) -> tuple[int, str]:
        connection = self._connection(timeout_s)
        try:
            connection.request(method, path, body, self._headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        finally:
            connection.close()
