"""The private socket between a parent and its child process, as a byte stream."""

from __future__ import annotations

import socket

import anyio
from anyio.abc import ByteStream

from backplane.lowlevel import checkpoint


class PrivateStream(ByteStream):
    """A socket that belongs to no loop.

    It may be used in one loop after the other, and is closed at once, without an
    ``await``, also where nothing can be awaited any longer.

    anyio's own streams take a connected socket only in late versions, and bind it to
    the loop they are made in. One task may receive and one may send at a time.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Wait for bytes."""
        await checkpoint()
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            except OSError as error:
                raise self._broken() from error
            else:
                if not data:
                    raise anyio.EndOfStream
                return data

    async def send(self, item: bytes) -> None:
        """Send all bytes. If it is cancelled, some have been sent and the stream is of no use."""
        await checkpoint()
        with memoryview(item) as rest:
            sent = 0
            while sent < len(rest):
                try:
                    sent += self._socket.send(rest[sent:])
                except BlockingIOError:
                    await anyio.wait_writable(self._socket)
                except OSError as error:
                    raise self._broken() from error

    def send_nowait(self, item: bytes) -> bool:
        """Send a few bytes if there is room for all of them now; False if they did not go."""
        try:
            return self._socket.send(item) == len(item)
        except OSError:
            return False

    def _broken(self) -> Exception:
        if self._socket.fileno() < 0:
            return anyio.ClosedResourceError()
        return anyio.BrokenResourceError()

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)
        await checkpoint()

    async def aclose(self) -> None:
        """Close it."""
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Close it, at once."""
        self._socket.close()
