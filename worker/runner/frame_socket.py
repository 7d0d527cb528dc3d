"""Messages over a socket pair between two processes of one host: each a length and its bytes.

Sending never blocks: what the other side does not read is kept. One thread reads; any may send.
"""

import socket
import struct
import threading
from select import POLLIN, POLLOUT, poll

_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 16


class FrameSocket:
    """Owns the socket. EOFError or OSError: the other side is gone."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._in = bytearray()
        self._out = bytearray()
        self._lock = threading.Lock()  # of what is to be sent
        self._poller = poll()
        self._poller.register(end, POLLIN)

    def send(self, message: bytes) -> None:
        with self._lock:
            self._out += _LENGTH.pack(len(message))
            self._out += message
        self._flush()

    def receive(self, timeout_s: float | None) -> list[bytes]:
        """What has come; waits for something for so long at most (None: for ever), and gets on with
        sending meanwhile.
        """
        if self._out:
            self._flush()
        data = self._read()
        if data is None and timeout_s != 0:
            self._poller.modify(self._socket, POLLIN | (POLLOUT if self._out else 0))
            self._poller.poll(None if timeout_s is None else timeout_s * 1000)
            self._flush()
            data = self._read()
        if data is None:
            return []
        if not data:
            raise EOFError("the other process is gone")
        self._in += data
        return self._take_messages()

    def _read(self) -> bytes | None:
        """Empty at the end; None: nothing has come."""
        try:
            return self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return None

    def close(self) -> None:
        self._socket.close()

    def _flush(self) -> None:
        with self._lock:
            if not self._out:
                return
            try:
                sent = self._socket.send(self._out)
            except BlockingIOError:
                return
            del self._out[:sent]

    def _take_messages(self) -> list[bytes]:
        messages: list[bytes] = []
        start = 0
        while len(self._in) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._in, start)
            end = start + _LENGTH.size + length
            if end > len(self._in):
                break
            messages.append(bytes(self._in[start + _LENGTH.size : end]))
            start = end
        del self._in[:start]
        return messages
