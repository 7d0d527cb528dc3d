"""API keys: who may ask. Knows nothing of HTTP beyond the Authorization header's value."""

import hashlib
import hmac

from gateway.errors import AuthenticationError


class ApiKeys:
    """Immutable. With no keys everybody is let in, as nobody in particular."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def tenant(self, authorization: bytes | None) -> str:
        """Who asks: a short fingerprint of the key, the same for every gateway; "" without keys.

        Raises: AuthenticationError.
        """
        if not self._digests:
            return ""
        if authorization is None:
            raise AuthenticationError(
                "You didn't provide an API key. Send it in an Authorization header: "
                "'Authorization: Bearer YOUR_KEY'."
            )
        scheme, _, key = authorization.partition(b" ")
        digest = _digest(key.strip())
        # Every key is compared, each in constant time: the time tells nothing of the keys.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise AuthenticationError("Incorrect API key provided.")
        return digest.hex()[:16]


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=32, person=b"shoal-api-key").digest()
