"""Streams of sockets, and who listens for them.

Not anyio's. On asyncio a stream of its own is twice as fast (see ``_asyncio_stream``),
and anyio's Unix sockets log an error there when cancelled as something comes.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, final

import anyio
import sniffio
from anyio.abc import AsyncResource, ByteStream, SocketAttribute

from backplane.lowlevel import checkpoint

from ._child_stream import PrivateStream


def is_asyncio() -> bool:
    """Whether the running loop is asyncio's, or made for it."""
    return sniffio.current_async_library() == "asyncio"


async def adopt(raw: socket.socket) -> ByteStream:
    """A stream of a connected socket, which is the stream's from now on."""
    if is_asyncio():
        from . import _asyncio_stream

        return await _asyncio_stream.adopt(raw)
    return SocketStream(raw)


class Prompt(ABC):
    """A stream that takes bytes at once, if it has room."""

    @abstractmethod
    def can_send(self) -> bool:
        """Whether it has, and the calling code runs in its loop. From any thread."""

    @abstractmethod
    def send_at_once(self, item: bytes) -> None:
        """Write all of it: what the system does not take now, before all that is sent later."""


@final
class SocketStream(PrivateStream):
    """One end of a connection. It must not be closed while it is waited for."""

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The socket."""
        return {SocketAttribute.raw_socket: lambda: self._socket}


@final
class SocketListener(AsyncResource):
    """Listens until it is closed. It must not be closed while it accepts."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw

    async def accept(self) -> ByteStream:
        """The next connection.

        Raises:
            OSError: It could not be accepted.
        """
        await checkpoint()
        while True:
            try:
                raw, _ = self._raw.accept()
            except BlockingIOError:
                await anyio.wait_readable(self._raw)
            else:
                raw.setblocking(False)
                return await adopt(raw)

    async def aclose(self) -> None:
        """Listen no longer."""
        self._raw.close()
        await checkpoint()
