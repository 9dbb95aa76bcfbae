"""A bad network between two real sockets: what the kernel would do, if it could be asked to."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute


@dataclass
class Weather:
    """What happens to bytes that go one way. It may change at any time."""

    delay: float = 0.0
    """Each part comes so many seconds late, and one more at most, by chance."""
    split: int = 0
    """Parts have so many bytes at most; 0: they stay as they are."""
    stalled: bool = False
    """Nothing goes on, and nothing is lost."""
    swallowed: bool = False
    """All is lost, the end of the stream too."""
    reset_after: int | None = None
    """The connection is reset, both ways, after so many bytes."""


@dataclass
class Chaos:
    """A proxy for one address, on one of its own."""

    target: int
    """The port that it leads to."""
    up: Weather = field(default_factory=Weather)
    """From those who dial."""
    down: Weather = field(default_factory=Weather)
    seed: int = 0
    port: int = 0
    carried: int = 0
    """Bytes, both ways."""

    @property
    def address(self) -> str:
        """Where to dial."""
        return f"tcp://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Chaos]:
        """Carry what comes, in a block."""
        self._random = random.Random(self.seed)
        self._changed = anyio.Event()
        multi = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = multi.extra(SocketAttribute.local_port)
        async with multi, anyio.create_task_group() as tg:
            tg.start_soon(multi.serve, self._carry)
            yield self
            tg.cancel_scope.cancel()

    async def _carry(self, caller: ByteStream) -> None:
        with anyio.CancelScope() as scope:
            try:
                callee = await anyio.connect_tcp("127.0.0.1", self.target)
            except OSError:
                await anyio.aclose_forcefully(caller)
                return
            async with caller, callee, anyio.create_task_group() as tg:
                tg.start_soon(self._flow, caller, callee, self.up, scope)
                tg.start_soon(self._flow, callee, caller, self.down, scope)

    async def _flow(
        self, source: ByteStream, to: ByteStream, weather: Weather, scope: anyio.CancelScope
    ) -> None:
        carried = 0
        try:
            while True:
                data = await source.receive(1 << 14)
                for part in self._parts(data, weather.split):
                    await self._pass(weather)
                    if not weather.swallowed:
                        await to.send(part)
                    carried += len(part)
                    self.carried += len(part)
                    if weather.reset_after is not None and carried >= weather.reset_after:
                        reset(source)
                        reset(to)
                        scope.cancel()
                        await anyio.sleep_forever()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._pass(weather)
            if weather.swallowed:
                await anyio.sleep_forever()
            scope.cancel()

    def _parts(self, data: bytes, size: int) -> list[bytes]:
        size = size or len(data)
        return [data[start : start + size] for start in range(0, len(data), size)]

    async def _pass(self, weather: Weather) -> None:
        if weather.delay:
            await anyio.sleep(weather.delay * (1 + self._random.random()))
        while weather.stalled:
            await anyio.sleep(0.005)


def reset(stream: Any) -> None:
    """Have a socket say, when it is closed, that something went wrong."""
    raw = stream.extra(SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
