"""API keys: who may ask. Knows nothing of HTTP beyond the Authorization header's value.

Keys live here only as hashes. KeyRing adds the file that may change while the gateway runs.
"""

import asyncio
import hashlib
import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from gateway.errors import AuthenticationError
from gateway.tenants import KeyDigest, KeyFileError, Tenant, key_digest, read_key_file

log = logging.getLogger(__name__)

PROBE_NAME = "shoal-probe"  # the launcher's: `shoal serve` asks for a first token
_ANYBODY = Tenant()


class ApiKeys:
    """Immutable. A key is looked up by a hash of its hash under a secret of this object, so the
    time of a look-up tells nothing of the keys, and one look-up serves any number of them."""

    def __init__(self, tenants: Mapping[KeyDigest, Tenant], *, is_open: bool = False) -> None:
        self._is_open = is_open
        self._secret = secrets.token_bytes(32)
        self._tenants = {self._blind(digest): tenant for digest, tenant in tenants.items()}

    def tenant(self, authorization: bytes | None) -> Tenant:
        """Who asks. Raises: AuthenticationError."""
        if self._is_open:
            return _ANYBODY
        if authorization is None:
            raise AuthenticationError(
                "You didn't provide an API key. Send it in an Authorization header: "
                "'Authorization: Bearer YOUR_KEY'."
            )
        scheme, _, key = authorization.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        tenant = self._tenants.get(self._blind(digest))
        if scheme.lower() != b"bearer" or tenant is None:
            raise AuthenticationError("Incorrect API key provided.")
        return tenant

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tenant.name for tenant in self._tenants.values())

    def _blind(self, digest: KeyDigest) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=32).digest()


def unnamed_tenants(keys: Iterable[str]) -> dict[KeyDigest, Tenant]:
    """Of keys given without a file: a name from the key's hash, the same at every gateway, and no
    limits."""
    digests = map(key_digest, keys)
    return {digest: Tenant(f"key-{digest.hex()[:12]}") for digest in digests}


class KeyRing:
    """The keys in force. A file that turns bad while the gateway runs leaves those of before.

    Owned by the event loop; reading the file may happen in a thread, the exchange does not.
    """

    def __init__(
        self, keys: tuple[str, ...] = (), path: Path | None = None, probe_key: str = ""
    ) -> None:
        """Raises: KeyFileError, ValueError for a key that is no key."""
        self._fixed = unnamed_tenants(keys)
        self._is_open = not keys and path is None
        if probe_key:
            self._fixed[key_digest(probe_key)] = Tenant(PROBE_NAME)
        self._path = path
        self._wants_reload = asyncio.Event()
        self._stamp = _stamp(path)
        self.current = self._read()

    async def keep_current(self, interval_s: float) -> None:
        """Until cancelled. The file may live on a slow disk, so it is looked at in a thread."""
        while self._path is not None:
            try:
                async with asyncio.timeout(interval_s):
                    await self._wants_reload.wait()
            except TimeoutError:
                pass
            await self._follow_file()

    def request_reload(self) -> None:
        """Whether the file looks changed or not."""
        self._wants_reload.set()

    async def _follow_file(self) -> None:
        is_asked = self._wants_reload.is_set()
        self._wants_reload.clear()
        stamp = await asyncio.to_thread(_stamp, self._path)
        if stamp == self._stamp and not is_asked:
            return
        self._stamp = stamp
        try:
            self.current = await asyncio.to_thread(self._read)
        except KeyFileError as error:
            log.error("the API keys stay as they were: %s", error)
        else:
            log.info("API keys read path=%s tenants=%d", self._path, len(self.current.names))

    def _read(self) -> ApiKeys:
        if self._path is None:
            return ApiKeys(self._fixed, is_open=self._is_open)
        return ApiKeys(self._fixed | read_key_file(self._path))


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Changes with the file's content; also behind a symbolic link that is switched over."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
