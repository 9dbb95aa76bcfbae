"""Sockets on asyncio: one turn of the loop from the bytes to who reads them.

anyio's streams take two for each read, and have the writer wait for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from typing import Any, Final, cast, final

import anyio
from anyio.abc import SocketStream

from ._sockets import Prompt

_PATIENCE: Final = 0.25
"""Seconds until the next address of a name is tried too, while one does not answer."""


async def connect(host: str, port: int) -> AsyncioStream:
    """A connection with whoever listens there, at the first of its addresses that answers.

    Raises:
        OSError: Nobody does.
    """
    found = await _addresses(host, port)
    made: list[AsyncioStream] = []
    errors: list[OSError] = []

    async def attempt(family: int, address: Any, over: anyio.Event) -> None:
        try:
            made.append(await _dial(family, address))
            tasks.cancel_scope.cancel()
        except OSError as error:
            errors.append(error)
        finally:
            over.set()

    try:
        async with anyio.create_task_group() as tasks:
            for family, _, _, _, address in found:
                over = anyio.Event()
                tasks.start_soon(attempt, family, address, over)
                with anyio.move_on_after(_PATIENCE):
                    await over.wait()
        if not made:
            raise errors[-1]
        return made.pop(0)
    finally:
        for each in made:
            each.abort()


async def _addresses(host: str, port: int) -> list[Any]:
    kind, numeric = socket.SOCK_STREAM, socket.AI_NUMERICHOST
    try:
        return socket.getaddrinfo(host, port, type=kind, flags=numeric)
    except socket.gaierror:  # it is a name
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=kind)


async def _dial(family: int, address: Any) -> AsyncioStream:
    raw = socket.socket(family)
    try:
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, address)
    except BaseException:
        raw.close()
        raise
    return await adopt(raw)


async def adopt(raw: socket.socket) -> AsyncioStream:
    """A stream of a connected socket, which is the stream's from now on."""
    stream = AsyncioStream()
    loop = asyncio.get_running_loop()
    with anyio.CancelScope(shield=True):  # half of a stream can be closed by nobody
        await loop.connect_accepted_socket(lambda: stream, raw)
    return stream


@final
class AsyncioStream(asyncio.Protocol, SocketStream, Prompt):
    """One end of a connection. One task may receive, and one may send."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        self._receiver: asyncio.Future[None] | None = None
        self._sender: asyncio.Future[None] | None = None
        self._may_read = True
        self._may_write = True
        self._over = False
        """Nothing more comes."""
        self._lost = False
        self._error: Exception | None = None
        """Why it was lost."""
        self._closed = False

    # -- for the loop ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It begins. What is sent counts as sent when the system has all of it."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(0)

    def data_received(self, data: bytes) -> None:
        """Some bytes. No more, before somebody has taken them."""
        self._chunks.append(bytes(data))
        if self._receiver is None:
            self._may_read = False
            self._transport.pause_reading()
        _wake(self._receiver)

    def eof_received(self) -> bool:
        """The other side writes no more. It may read still."""
        self._over = True
        _wake(self._receiver)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._over = self._lost = True
        self._error = exc
        _wake(self._receiver)
        _wake(self._sender)

    def pause_writing(self) -> None:
        """The system takes no more for now."""
        self._may_write = False

    def resume_writing(self) -> None:
        """It has taken all."""
        self._may_write = True
        _wake(self._sender)

    # -- for the driver --------------------------------------------------------------------

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Some bytes. Cancelled, it has taken none."""
        if self._receiver is not None:
            raise anyio.BusyResourceError("reading from")
        if self._chunks or self._over or self._closed:
            await asyncio.sleep(0)
        while not (self._chunks or self._over or self._closed):
            if not self._may_read:
                self._may_read = True
                self._transport.resume_reading()
            self._receiver = self._loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        if self._closed:
            raise anyio.ClosedResourceError
        if not self._chunks:
            if self._error is not None:
                raise anyio.BrokenResourceError from self._error
            raise anyio.EndOfStream
        chunk = self._chunks.popleft()
        if len(chunk) > max_bytes:
            self._chunks.appendleft(chunk[max_bytes:])
            return chunk[:max_bytes]
        return chunk

    async def send(self, item: bytes) -> None:
        """Write all of it. Cancelled, some or all of it may be written all the same."""
        if self._sender is not None:
            raise anyio.BusyResourceError("writing to")
        self._check_open()
        self._transport.write(item)
        if self._transport.is_closing():
            await asyncio.sleep(0)  # why, is told a turn later
        while not (self._may_write or self._lost or self._closed):
            self._sender = self._loop.create_future()
            try:
                await self._sender
            finally:
                self._sender = None
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._lost or self._transport.is_closing():
            raise anyio.BrokenResourceError from self._error

    def can_send(self) -> bool:
        """Whether ``send`` would not wait, and this is the loop for it. From any thread."""
        return (
            self._may_write
            and asyncio._get_running_loop() is self._loop
            and not self._transport.is_closing()
        )

    def send_at_once(self, item: bytes) -> None:
        """Write all of it, as far as the system takes it now, and the rest before all else."""
        self._transport.write(item)

    async def send_eof(self) -> None:
        """Write no more."""
        with contextlib.suppress(OSError):
            self._transport.write_eof()
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        """Close it; what the system has not taken yet is not sent any longer."""
        self.abort()
        await asyncio.sleep(0)

    def abort(self) -> None:
        """The same, at once."""
        self._closed = True
        self._transport.abort()
        _wake(self._receiver)
        _wake(self._sender)

    @property
    def _raw_socket(self) -> socket.socket:
        return cast("socket.socket", self._transport.get_extra_info("socket"))


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
