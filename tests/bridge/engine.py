"""Messaging engines for the tests: one in memory, which does what it is told, and real servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from backplane import Device, LinkMode, Message
from backplane.bridge import Node
from backplane.bridge.nats import NatsBroker

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from nodes import own_host
else:
    from .nodes import own_host

SECRET = bytes(range(100, 132))
"""What the nodes of the tests share."""

Hear = Callable[[str, bytes, str | None], object]


class Engine:
    """Carries datagrams at once, unless the test has other wishes."""

    def __init__(self) -> None:
        self.hears: dict[str, list[Hear]] = {}
        self.sent: list[tuple[str, bytes]] = []
        """All that was published."""
        self.loses: Callable[[str, bytes], object] = lambda subject, data: False

    def publish(self, subject: str, data: bytes, reply: str = "") -> bool:
        self.sent.append((subject, data))
        if self.loses(subject, data):
            return True
        hears = self.hears.get(subject)
        if hears:
            for hear in list(hears):
                hear(subject, data, None)
        elif reply:
            for hear in self.hears.get(reply.rpartition(".")[0] + ".*", []):
                hear(reply, b"", "503")
        return True

    def lose_all(self) -> None:
        """From now on."""
        self.loses = lambda subject, data: True


class Client:
    """The engine's client, in place of that of NATS."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.mine: dict[str, Hear] = {}
        self.connected = False
        self.connections = self.dropped = 0
        self.max_payload = 1 << 20

    async def start(self, timeout: float) -> None:  # noqa: ASYNC109
        self.connected = True
        self.connections += 1

    async def stop(self) -> None:
        self.connected = False

    def publish(self, subject: str, data: bytes, reply: str = "") -> bool:
        return self.engine.publish(subject, data, reply)

    async def subscribe(self, subject: str, hear: Hear) -> None:
        self.mine[subject] = hear
        self.engine.hears.setdefault(subject, []).append(hear)

    def unsubscribe(self, subject: str) -> None:
        hear = self.mine.pop(subject, None)
        others = [each for each in self.engine.hears.pop(subject, []) if each is not hear]
        if others:
            self.engine.hears[subject] = others


def broker(engine: Engine, **options: Any) -> NatsBroker:
    """A broker whose engine is this one, and not NATS."""
    made = NatsBroker("nats://nowhere", cluster="test", **options)
    made._client = Client(engine)  # type: ignore[assignment]
    return made


class Port:
    """Keeps what it is told, and answers with what it was asked."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def tell(self, message: Any) -> None:
        self.told.append(message.open())

    def call(self, request: Any) -> None:
        request.reply(request.open())


class Pair:
    """Two nodes that are connected; ``a`` has called, and reaches a Device of ``b``."""

    def __init__(
        self, engine: Any, broker: NatsBroker, a: Node, b: Node, other: NatsBroker | None = None
    ) -> None:
        self.engine = engine
        self.broker = broker
        self.other = other or broker
        self.a = a
        self.b = b
        self.port = Port()
        self.service = Device("service")
        self.watcher = Device("watcher")

    async def connect(self) -> None:
        await self.other.listen(self.b)
        peer = await self.broker.connect(self.a, "b")
        self.b.export("service", self.service, port=self.port)
        self.line = await peer.find("service")
        self.watcher.link(self.line, LinkMode.MONITOR)
        while not self.b.peers():
            await anyio.sleep(0.001)


@contextlib.asynccontextmanager
async def pair(
    engine: Engine, *, seal: bool = True, window: int = 1 << 20, **options: Any
) -> AsyncIterator[Pair]:
    """Two nodes with a connection over an engine in memory."""
    options.setdefault("secret", SECRET)
    async with (
        broker(engine, seal=seal, window=window) as made,
        Node("a", **options) as a,
        Node("b", **options) as b,
    ):
        both = Pair(engine, made, a, b)
        await both.connect()
        yield both


async def news(device: Device, seconds: float = 20) -> Message:
    """The next message to a Device."""
    with anyio.fail_after(seconds):
        return await device.receive()


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for what another thread, process or node brings about."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.005)


# -- real servers -------------------------------------------------------------------------------


def binary() -> str:
    """The server's program; without it the test is skipped, or fails where it has to be there."""
    found = shutil.which("nats-server") or shutil.which("/usr/sbin/nats-server")
    if found is None:
        reason = "there is no nats-server on this machine"
        if os.environ.get("BACKPLANE_NATS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Server:
    """A NATS server of the test's own, on a host of its own."""

    def __init__(self, folder: Path, config: str = "") -> None:
        self._command = binary()
        self._log = folder / "nats.log"
        self._config = folder / "nats.conf"
        self._config.write_text(config)
        self._host = own_host()
        with socket.socket() as free:
            free.bind((self._host, 0))
            self.port = free.getsockname()[1]
        self.url = f"nats://{self._host}:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, on the same port as ever."""
        self._process = subprocess.Popen(
            [
                self._command, "-a", self._host, "-p", str(self.port),
                "-l", str(self._log), "-c", str(self._config),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((self._host, self.port), 1).close()
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        self._process.kill()
        self._process.wait()

    def configure(self, text: str) -> None:
        """Have it read its configuration again, which is now this."""
        self._config.write_text(text)
        os.kill(self._process.pid, signal.SIGHUP)

    def pause(self) -> None:
        """Stop it where it is; its connections stay."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self._process.pid, signal.SIGCONT)


@contextlib.contextmanager
def server(folder: Path, config: str = "") -> Iterator[Server]:
    """A server that ends with the block."""
    made = Server(folder, config)
    try:
        yield made
    finally:
        made.kill()
