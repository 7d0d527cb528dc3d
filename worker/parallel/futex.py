"""Waiting on a 32-bit word of shared memory without burning a core: Linux futexes through ctypes.

Knows nothing of ranks. Called by the shared-memory group. Only offered where stores become visible
to other cores in program order (x86-64), since Python has no fences to ask for it elsewhere.
"""

import ctypes
import platform
import sys
from mmap import mmap

_SYS_FUTEX = 202  # x86-64
_FUTEX_WAIT = 0
_FUTEX_WAKE = 1
_EVERYONE = 0x7FFFFFFF

IS_SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


# CDLL, not PyDLL: the interpreter lock is released while waiting.
_syscall = ctypes.CDLL(None).syscall
_syscall.restype = ctypes.c_long


class FutexWord:
    """One aligned word in a shared mapping. Waits may return early: the caller looks again."""

    def __init__(self, memory: mmap, offset: int) -> None:
        self._word = ctypes.c_uint32.from_buffer(memory, offset)
        self._address = ctypes.c_void_p(ctypes.addressof(self._word))

    def wait(self, seen: int, timeout_s: float) -> None:
        """Sleeps until woken, unless the word no longer is `seen`."""
        whole = int(timeout_s)
        limit = _Timespec(whole, int((timeout_s - whole) * 1e9))
        _syscall(
            ctypes.c_long(_SYS_FUTEX),
            self._address,
            ctypes.c_int(_FUTEX_WAIT),
            ctypes.c_uint32(seen),
            ctypes.byref(limit),
            None,
            ctypes.c_uint32(0),
        )

    def wake(self) -> None:
        _syscall(
            ctypes.c_long(_SYS_FUTEX),
            self._address,
            ctypes.c_int(_FUTEX_WAKE),
            ctypes.c_int(_EVERYONE),
            None,
            None,
            ctypes.c_uint32(0),
        )
