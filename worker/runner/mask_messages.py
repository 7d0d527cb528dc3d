"""What a leader and its mask process say to each other, and the memory they share.

Masks lie in shared memory, a row each; all else goes through the socket as msgpack. A sequence is
named by a key that is never used twice.
"""

import mmap
import os
import tempfile

import msgspec
import numpy as np
import numpy.typing as npt

NO_KEY = 0
_HEADER_BYTES = 64


class Start(msgspec.Struct, tag="start", array_like=True):
    """A sequence enters, behind the tokens it has already; its masks go to `row`."""

    key: int
    row: int
    kind: str
    text: str
    token_ids: list[int]


class Accept(msgspec.Struct, tag="accept", array_like=True):
    """The next tokens of these sequences: compute their next masks."""

    tokens: list[tuple[int, list[int]]]  # key, ids


class Release(msgspec.Struct, tag="release", array_like=True):
    keys: list[int]


class Hello(msgspec.Struct, tag="hello", array_like=True):
    """First of all: the vocabulary is read, or why not."""

    problem: str


class Masks(msgspec.Struct, tag="masks", array_like=True):
    """The masks of `ready` are in their rows."""

    ready: list[int] = []
    # the only way to go on, as far as it is known, for those of them that have but one
    forced: dict[int, list[int]] = {}
    errors: dict[int, str] = {}  # cannot go on, and why


FromLeader = Start | Accept | Release
FromMaskProcess = Hello | Masks


class MaskMemory:
    """A row of bits a sequence, bit i: token i may come next; before them what is being computed.

    The mask process writes a row only between being told of a token and answering, the leader reads
    it only outside of that.
    """

    def __init__(self, fd: int, num_rows: int, vocab_size: int) -> None:
        """`fd`: of `create`, on either side."""
        self.row_bytes = (vocab_size + 31) // 32 * 4
        self._map = mmap.mmap(fd, _HEADER_BYTES + num_rows * self.row_bytes)
        memory = np.frombuffer(self._map, dtype=np.uint8)
        # [masking, compiling]: the keys that the two threads of the mask process are at
        self.at_work: npt.NDArray[np.int64] = memory[:16].view(np.int64)
        self.rows: npt.NDArray[np.uint8] = memory[_HEADER_BYTES:].reshape(num_rows, self.row_bytes)

    @staticmethod
    def create(num_rows: int, vocab_size: int) -> int:
        """A file descriptor of memory that is freed with its last user."""
        size = _HEADER_BYTES + num_rows * ((vocab_size + 31) // 32 * 4)
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("masks")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.truncate(fd, size)
        return fd
