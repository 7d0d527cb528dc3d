"""The portable key of a KV block: a hash over all tokens up to and including the block.

The gateway (routing), the block pool (prefix cache) and the cluster scheduler (prefix index) share
it, so it is defined once, here. Keyed BLAKE2b (RFC 7693), 128 bits: tenants share a cache, so a
collision must not be constructible.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import NewType

BlockHash = NewType("BlockHash", bytes)

HASH_BYTES = 16
_KEY = b"shoal.block.v1"


def root_hash(cache_salt: str = "") -> BlockHash:
    """The parent of a first block. Requests with different salts never share a block."""
    return BlockHash(blake2b(cache_salt.encode(), digest_size=HASH_BYTES, key=_KEY).digest())


def hash_block(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Hash of one full block. Token ids must fit in 32 unsigned bits."""
    tokens = array("I", token_ids).tobytes()
    return BlockHash(blake2b(parent + tokens, digest_size=HASH_BYTES, key=_KEY).digest())


def hash_full_blocks(
    token_ids: Sequence[int], block_size: int, parent: BlockHash
) -> list[BlockHash]:
    """Chained hashes of the full blocks of `token_ids`; a last partial block has none."""
    tokens = array("I", token_ids).tobytes()
    stride = 4 * block_size
    hashes: list[BlockHash] = []
    for start in range(0, len(tokens) - stride + 1, stride):
        digest = blake2b(parent + tokens[start : start + stride], digest_size=HASH_BYTES, key=_KEY)
        parent = BlockHash(digest.digest())
        hashes.append(parent)
    return hashes


def pack(hashes: Sequence[BlockHash]) -> bytes:
    """The wire form: hashes one after another."""
    return b"".join(hashes)


def unpack(packed: bytes) -> list[BlockHash]:
    """Raises: ValueError if the length is not a multiple of 16."""
    if len(packed) % HASH_BYTES:
        raise ValueError(f"{len(packed)} bytes are not whole {HASH_BYTES}-byte block hashes")
    return [BlockHash(packed[i : i + HASH_BYTES]) for i in range(0, len(packed), HASH_BYTES)]
