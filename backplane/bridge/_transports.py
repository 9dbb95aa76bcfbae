"""Sockets: how they are made, and what is set on them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

import anyio
from anyio import TypedAttributeSet, typed_attribute
from anyio.abc import ByteStream, SocketAttribute

from ._addresses import Address
from ._sockets import SocketListener, adopt, is_asyncio
from ._unix import dial_unix, listen_unix

_BUFFER: Final = 1 << 17
"""Bytes of the kernel's buffers: with larger ones a ping waits behind megabytes."""


class StreamAttribute(TypedAttributeSet):
    """What a stream that is no socket may tell of itself."""

    binding: bytes = typed_attribute()
    """What the session's proofs are to be bound to: it differs with each connection."""
    source: str = typed_attribute()
    """Where it leads, for those who operate the node."""


async def dial(address: Address) -> ByteStream:
    """A connection with whoever listens there.

    Raises:
        OSError: Nobody does.
    """
    if address.kind == "unix":
        return await adopt(dial_unix(address.host))
    if is_asyncio():
        from ._asyncio_stream import connect

        return await connect(address.host, address.port)
    return await anyio.connect_tcp(address.host, address.port)


async def listen(address: Address) -> tuple[Any, Address, Callable[[], None]]:
    """A listener, where it really listens, and what takes its file away, if there is one.

    Raises:
        OSError: The address is taken, or not this machine's.
    """
    if address.kind == "unix":
        raw, remove = listen_unix(address.host)
        return SocketListener(raw), address, remove
    multi = await anyio.create_tcp_listener(local_host=address.host, local_port=address.port)
    first, *rest = multi.listeners
    for other in rest:
        await other.aclose()
    bound = address.with_port(first.extra(SocketAttribute.local_port))
    if is_asyncio():
        raw = first.extra(SocketAttribute.raw_socket).dup()
        await first.aclose()
        return SocketListener(raw), bound, lambda: None
    return first, bound, lambda: None


def extra(stream: ByteStream, attribute: Any, default: Any) -> Any:
    """What a stream tells of itself; also of one that is lost already, where loops may raise."""
    try:
        return stream.extra(attribute, default)
    except Exception:  # noqa: BLE001 - uvloop has no socket then, and anyio stumbles over that
        return default


def source_of(stream: ByteStream, address: Address) -> str | None:
    """Who is at the other end; None if it is a user of this machine who has no business there."""
    if address.kind != "unix":
        remote = extra(stream, SocketAttribute.remote_address, ("?",))
        return str(remote[0])
    if not hasattr(socket, "SO_PEERCRED"):
        return "unix"  # the file's mode is what there is
    raw = extra(stream, SocketAttribute.raw_socket, None)
    if raw is None:
        return None
    credentials = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, user, _ = struct.unpack("3i", credentials)
    return f"unix process {pid}" if user in (os.geteuid(), 0) else None


def tune(stream: ByteStream, dead_after: float) -> None:
    """Set what a connection of ours needs, as far as it is a socket."""
    raw = extra(stream, SocketAttribute.raw_socket, None)
    if raw is None:
        return
    options = [(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)]
    options.append((socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER))
    if raw.family in (socket.AF_INET, socket.AF_INET6):
        options.append((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1))
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(dead_after * 1000)))
    for level, option, value in options:
        with contextlib.suppress(OSError):
            raw.setsockopt(level, option, value)
