"""A tensor-parallel group of CPU ranks on one host: collectives through a shared-memory segment.

Each rank writes its part, all ranks meet, each reads all parts; a sum is taken in rank order by
everyone, so all ranks hold the same bits. Connected by `worker.parallel.rendezvous`; knows nothing
of stores and addresses.

    | rank 0: arrived, left | ... | rank n-1 | broken by | to 4096 | slots: turn 0 | slots: turn 1 |
      a line of 64 bytes each                                        one a rank      one a rank

Two turns suffice: a rank that writes turn t again has passed the meeting after t, which every rank
reaches only when it has read turn t.
"""

import mmap
import os
import select
import time
from typing import NoReturn

import torch
from torch import Tensor

from worker.errors import ShardError
from worker.parallel.futex import FutexWord

SLOT_BYTES = 1 << 20
_LINE = 64
_WORDS_PER_LINE = _LINE // 4
_PAGE = 4096
_MASK = 0xFFFFFFFF
_HALF = 1 << 31
_SPINS = 50  # looks before sleeping: some 5 us; more starves the others where cores are scarce
_LIVENESS_INTERVAL_S = 0.05


def segment_bytes(size: int) -> int:
    return _PAGE + 2 * size * SLOT_BYTES


def create_segment(size: int) -> tuple[mmap.mmap, int]:
    """An anonymous file and its mapping. Nothing to unlink: it ends with its last user.

    Raises: OSError when there is not enough memory for it.
    """
    fd = os.memfd_create("shoal-tp", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, segment_bytes(size))  # no SIGBUS later
        return mmap.mmap(fd, segment_bytes(size)), fd
    except OSError:
        os.close(fd)
        raise


def attach_segment(path: str, size: int) -> mmap.mmap:
    """`path`: the creator's descriptor under /proc. Raises: OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, segment_bytes(size))
    finally:
        os.close(fd)


class SharedMemoryGroup:
    """Owned by the thread that runs the model; only `abort` may be called from another.

    A rank that does not come within `timeout_s`, has died or has left breaks the group: this and
    every later collective raises ShardError, on every rank.
    """

    def __init__(
        self, rank: int, segment: mmap.mmap, pids: list[int], timeout_s: float = 60.0
    ) -> None:
        """`pids[r]`: rank r's process. Raises: OSError when one of them is gone."""
        self.rank = rank
        self.size = len(pids)
        self._timeout_s = timeout_s
        self._segment: mmap.mmap | None = segment
        self._words = memoryview(segment).cast("I")
        self._arrived = [FutexWord(segment, r * _LINE) for r in range(self.size)]
        self._broken_word = self.size * _WORDS_PER_LINE
        self._others = [r for r in range(self.size) if r != rank]
        self._pidfds = _open_pidfds({r: pids[r] for r in self._others})
        self._sequence = 0
        self._slots: dict[torch.dtype, list[list[Tensor]]] = {}

    def all_reduce(self, x: Tensor) -> Tensor:
        flat = x.contiguous().view(-1)
        for piece in flat.split(SLOT_BYTES // x.element_size()):
            self._sum_piece(piece)
        return x if x.is_contiguous() else x.copy_(flat.view(x.shape))

    def all_gather(self, x: Tensor) -> Tensor:
        flat = x.contiguous().view(-1)
        pieces = flat.split(SLOT_BYTES // x.element_size())
        if len(pieces) == 1:
            return torch.cat([part.view(x.shape) for part in self._exchange(flat)], dim=-1)
        parts = flat.new_empty((self.size, len(flat)))
        start = 0
        for piece in pieces:
            end = start + len(piece)
            for mine, part in zip(parts[:, start:end], self._exchange(piece), strict=True):
                mine.copy_(part)
            start = end
        return parts.view(self.size, *x.shape).movedim(0, -2).flatten(-2)

    def broadcast(self, x: Tensor) -> Tensor:
        flat = x.contiguous().view(-1)
        for piece in flat.split(SLOT_BYTES // x.element_size()):
            piece.copy_(self._exchange(piece)[0])
        return x if x.is_contiguous() else x.copy_(flat.view(x.shape))

    def min_int(self, value: int) -> int:
        return int(self.all_gather(torch.tensor([value], dtype=torch.int64)).min())

    def abort(self) -> None:
        """Breaks the group for all ranks; those that wait in a collective raise at once."""
        if self._segment is None:
            return
        if not self._words[self._broken_word]:  # who was first is the better reason
            self._words[self._broken_word] = self.rank + 1
        for word in self._arrived:
            word.wake()

    def close(self) -> None:
        """Leaves. A rank that still waits for this one raises. Idempotent."""
        if self._segment is None:
            return
        self._words[self.rank * _WORDS_PER_LINE + 1] = 1
        self._arrived[self.rank].wake()
        self._segment = None  # unmapped with the last view of it
        self._slots.clear()
        for pidfd in self._pidfds.values():
            os.close(pidfd)

    def _sum_piece(self, piece: Tensor) -> None:
        parts = self._exchange(piece)
        if self.size == 2:  # either order of two gives the same bits
            piece.add_(parts[1 - self.rank])
        elif piece.dtype in (torch.bfloat16, torch.float16):
            total = parts[0].float()
            for part in parts[1:]:
                total.add_(part)
            piece.copy_(total)
        else:
            torch.add(parts[0], parts[1], out=piece)
            for part in parts[2:]:
                piece.add_(part)

    def _exchange(self, piece: Tensor) -> list[Tensor]:
        """piece: [n] of at most a slot. Returns all ranks' pieces, valid until the next but one."""
        slots = self._slots_of(piece.dtype)[(self._sequence + 1) & 1]
        slots[self.rank][: len(piece)].copy_(piece)
        self._meet()
        return [slot[: len(piece)] for slot in slots]

    def _slots_of(self, dtype: torch.dtype) -> list[list[Tensor]]:
        if self._segment is None:
            raise ShardError(f"rank {self.rank} has left its tensor-parallel group")
        if dtype not in self._slots:
            count = SLOT_BYTES // dtype.itemsize
            offsets = range(_PAGE, segment_bytes(self.size), SLOT_BYTES)
            with torch.inference_mode(False):  # else they could not be written outside of it
                views = [
                    torch.frombuffer(self._segment, dtype=dtype, count=count, offset=offset)
                    for offset in offsets
                ]
            self._slots[dtype] = [views[: self.size], views[self.size :]]
        return self._slots[dtype]

    def _meet(self) -> None:
        """Returns when every rank has come here as often as this one."""
        if self._words[self._broken_word]:
            self._raise_broken(f"rank {self._words[self._broken_word] - 1} gave up")
        self._sequence = (self._sequence + 1) & _MASK
        self._words[self.rank * _WORDS_PER_LINE] = self._sequence
        self._arrived[self.rank].wake()
        for other in self._others:
            if not self._spin(other):
                self._sleep_until_arrived(other)

    def _has_arrived(self, other: int) -> bool:
        return (self._words[other * _WORDS_PER_LINE] - self._sequence) & _MASK < _HALF

    def _spin(self, other: int) -> bool:
        return any(self._has_arrived(other) for _ in range(_SPINS))

    def _sleep_until_arrived(self, other: int) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            trouble = self._trouble_with(other)  # first: its last deed may have been to arrive
            seen = self._words[other * _WORDS_PER_LINE]
            if self._has_arrived(other):
                return
            remaining_s = deadline - time.monotonic()
            if trouble is None and remaining_s <= 0:
                trouble = f"rank {other} did not come within {self._timeout_s:g} s"
            if trouble is not None:
                self._raise_broken(trouble)
            self._arrived[other].wait(seen, min(_LIVENESS_INTERVAL_S, remaining_s))

    def _raise_broken(self, reason: str) -> NoReturn:
        self.abort()
        raise ShardError(f"tensor-parallel group broken at rank {self.rank}: {reason}")

    def _trouble_with(self, other: int) -> str | None:
        """Why `other` will not come, if known."""
        breaker = self._words[self._broken_word]
        if breaker:
            return f"rank {breaker - 1} gave up"
        if self._words[other * _WORDS_PER_LINE + 1]:
            return f"rank {other} has left"
        poll = select.poll()
        poll.register(self._pidfds[other], select.POLLIN)
        return f"rank {other} has died" if poll.poll(0) else None


def _open_pidfds(pids: dict[int, int]) -> dict[int, int]:
    """Readable once the process has ended, also as a zombie. Raises: OSError."""
    opened: dict[int, int] = {}
    try:
        for rank, pid in pids.items():
            opened[rank] = os.pidfd_open(pid)
    except OSError:
        for pidfd in opened.values():
            os.close(pidfd)
        raise
    return opened
