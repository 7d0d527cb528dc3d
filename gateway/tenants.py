"""Tenants: who may ask, for what and how much, and the file that names them.

An API keys file is YAML, JSON or TOML by its ending, with one list, `keys`; what may stand in it is
KeyEntry. Keys may be written as they are or as their SHA-256, which `shoal keys hash` prints; only
hashes are kept.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

HASH_PREFIX = "sha256:"
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")

KeyDigest: TypeAlias = bytes  # the key's SHA-256
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:@/-]{1,64}$")]
AtLeastOne = Annotated[int, Meta(ge=1)]
Texts = str | list[str]


@dataclass(frozen=True, slots=True)
class Limits:
    """None: unlimited. They hold for all gateway processes of one machine together."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None

    @property
    def is_unlimited(self) -> bool:
        return self == _UNLIMITED


_UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str = ""  # "": nobody in particular, as without keys
    limits: Limits = field(default_factory=Limits)
    models: frozenset[str] | None = None  # served names it may use; None: all
    priority: int | None = None  # its requests': the default, and the most urgent it may ask for
    max_tokens: int | None = None  # of one answer

    def may_use(self, served_names: Iterable[str]) -> bool:
        return self.models is None or not self.models.isdisjoint(served_names)


class KeyFileError(ValueError):
    """The API keys file cannot be used; the message says what in it is wrong."""


class KeyEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: Name
    key: Texts = []
    hash: Texts = []
    requests_per_minute: AtLeastOne | None = None
    tokens_per_minute: AtLeastOne | None = None
    max_concurrent: AtLeastOne | None = None
    models: list[str] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] = 0
    max_tokens: AtLeastOne | None = None

    def tenant(self) -> Tenant:
        limits = Limits(self.requests_per_minute, self.tokens_per_minute, self.max_concurrent)
        models = None if self.models is None else frozenset(self.models)
        return Tenant(self.name, limits, models, self.priority, self.max_tokens)

    def digests(self) -> list[KeyDigest]:
        """Raises: ValueError for a key that is empty or a hash that is none."""
        plain, hashes = _listed(self.key), _listed(self.hash)
        if not plain and not hashes:
            raise ValueError("neither `key` nor `hash` is given")
        return [*map(key_digest, plain), *map(parse_hash, hashes)]


class _KeyFile(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[KeyEntry]


def key_digest(key: str) -> KeyDigest:
    """Of a key as it is, or of one that is already written as `sha256:...`."""
    if not key.strip():
        raise ValueError("a key is empty")
    if key.startswith(HASH_PREFIX):
        return parse_hash(key)
    return hashlib.sha256(key.strip().encode()).digest()


def parse_hash(text: str) -> KeyDigest:
    digits = text.strip().lower().removeprefix(HASH_PREFIX)
    if not _HEX_DIGEST.fullmatch(digits):
        raise ValueError(f"a hash must be '{HASH_PREFIX}' and 64 hexadecimal digits")
    return bytes.fromhex(digits)


def read_key_file(path: Path) -> dict[KeyDigest, Tenant]:
    """Raises: KeyFileError."""
    try:
        loaded = _decode(path)
    except OSError as error:
        raise KeyFileError(f"API keys file {path}: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, ImportError) as error:
        raise KeyFileError(f"API keys file {path}: {error}") from error
    return _tenants(loaded.keys, path)


def _decode(path: Path) -> _KeyFile:
    data = path.read_bytes()
    match path.suffix.lower():
        case ".json":
            return msgspec.json.decode(data, type=_KeyFile)
        case ".toml":
            return msgspec.toml.decode(data, type=_KeyFile)
        case ".yaml" | ".yml":
            return msgspec.yaml.decode(data, type=_KeyFile)
    raise KeyFileError(f"API keys file {path}: the name must end in .yaml, .json or .toml")


def _tenants(entries: list[KeyEntry], path: Path) -> dict[KeyDigest, Tenant]:
    tenants: dict[KeyDigest, Tenant] = {}
    names: set[str] = set()
    for place, entry in enumerate(entries):
        where = f"API keys file {path}: keys[{place}] ({entry.name})"
        if entry.name in names:
            raise KeyFileError(f"{where}: the name is taken; one entry may list several keys")
        names.add(entry.name)
        try:
            digests = entry.digests()
        except ValueError as error:
            raise KeyFileError(f"{where}: {error}") from error
        if any(digest in tenants for digest in digests):
            raise KeyFileError(f"{where}: another entry has the same key")
        tenants |= dict.fromkeys(digests, entry.tenant())
    return tenants


def _listed(given: Texts) -> list[str]:
    return [given] if isinstance(given, str) else given
