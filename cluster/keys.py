"""`shoal keys`: API keys for the file of --api-keys-file, without a key in it.

A hash is the SHA-256 of the key's text: keys are long and random, so nothing slower is needed.
"""

import hashlib
import secrets
import sys

from cluster.cli_errors import CommandError

KEY_PREFIX = "sk-shoal-"


def key_hash(key: str) -> str:
    """As `hash` of an entry of the file. Raises: CommandError."""
    key = key.strip()
    if not key or not key.isprintable() or " " in key:
        raise CommandError("a key is one word of printable characters")
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def hash_key(key: str | None) -> int:
    """Prints the hash of a key; of the first line of the standard input where none is given."""
    print(key_hash(sys.stdin.readline() if key is None else key))
    return 0


def new_key() -> int:
    """Prints a new key and its hash; the key is nowhere else."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    print(f"key:  {key}\nhash: {key_hash(key)}")
    return 0
