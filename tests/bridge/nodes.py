"""What the tests of nodes are made of: ways to be connected, and what they say to each other."""

from __future__ import annotations

import base64
import contextlib
import gc
import itertools
import logging
import os
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.stapled import StapledByteStream

from backplane import Device, Line, LinkMode, Message
from backplane.bridge import TLS, Node, NodeDown, Peer, Right
from backplane.bridge._addresses import parse
from backplane.bridge._codec import Msgspec
from backplane.bridge._driver import Driver
from backplane.bridge._exports import QUIET, Exports
from backplane.bridge._identity import Identity
from backplane.bridge._session import Session
from backplane.bridge._setup import Setup
from backplane.bridge._switchboard import Switchboard
from backplane.bridge._transports import dial
from backplane.lowlevel import Outpost

SECRET = bytes(range(200, 232))
"""What the nodes of the tests share."""

_numbers = itertools.count(1)


def own_host() -> str:
    """A number of this machine that no other process uses: nobody else takes a port of it.

    Nor does the system give such a port to who connects with it while nobody listens there.
    """
    pid = os.getpid()
    return f"127.{64 + (pid >> 16)}.{pid >> 8 & 255}.{pid & 255}"


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for what the system, or another process, brings about."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.002)


async def news(device: Device, seconds: float = 20) -> Message:
    """The next message to a Device."""
    with anyio.fail_after(seconds):
        return await device.receive()


def silent(device: Device) -> bool:
    """Whether a Device has no message."""
    try:
        message = device.receive_nowait()
    except anyio.WouldBlock:
        return True
    raise AssertionError(message)


class Papers:
    """Certificates, by the names of nodes: ``foreign`` are those of another authority."""

    def __init__(self, folder: Path) -> None:
        trustme = pytest.importorskip("trustme")
        self._folder = folder
        self._authorities: dict[bool, Any] = {False: trustme.CA(), True: trustme.CA()}
        for foreign, authority in self._authorities.items():
            authority.cert_pem.write_to_path(str(folder / f"authority-{foreign}.pem"))
        self._made: dict[tuple[str, bool], Path] = {}

    def files(self, name: str, foreign: bool = False) -> tuple[Path, Path, Path]:
        """Of a certificate, its key, and the authority's certificate."""
        if (name, foreign) not in self._made:
            made = self._authorities[foreign].issue_cert(name)
            stem = self._folder / f"{name}-{foreign}"
            made.private_key_pem.write_to_path(f"{stem}.key")
            for index, pem in enumerate(made.cert_chain_pems):
                pem.write_to_path(f"{stem}.pem", append=index > 0)
            self._made[name, foreign] = stem
        stem = self._made[name, foreign]
        return Path(f"{stem}.pem"), Path(f"{stem}.key"), self.authority(foreign)

    def authority(self, foreign: bool = False) -> Path:
        """The certificate of one."""
        return self._folder / f"authority-{foreign}.pem"

    def tls(self, name: str, foreign: bool = False, again: bool = False, **options: Any) -> TLS:
        """What a node of that name is given; ``again``: another certificate."""
        if again:
            self._made.pop((name, foreign), None)
        return TLS(*self.files(name, foreign), **options)


def pair() -> tuple[ByteStream, ByteStream]:
    """Two streams in memory, whose ends are joined."""
    a, to_a = _pipe()
    b, to_b = _pipe()
    return StapledByteStream(to_b, a), StapledByteStream(to_a, b)


def _pipe() -> tuple[BufferedByteReceiveStream, Any]:
    send, receive = anyio.create_memory_object_stream[bytes](4)
    return BufferedByteReceiveStream(receive), send


@dataclass
class Desk:
    """A port: keeps what it is told, and answers requests as it is asked to."""

    told: list[Any] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    answers: Callable[[Any], Any] | None = None

    def tell(self, message: Any) -> None:
        self.told.append(message.open())

    def call(self, request: Any) -> None:
        self.asked.append(request)
        if self.answers is not None:
            request.reply(self.answers(request.open()))

    def __hash__(self) -> int:
        return id(self)


@dataclass
class Pair:
    """Two nodes with a connection, which ``a`` has made."""

    a: Node
    b: Node
    to_b: Peer
    to_a: Peer

    async def reach(
        self, device: Device | Line, rights: Right = Right.ALL, port: Any = None
    ) -> Line:
        """A Line of ``a`` to a Device of ``b``."""
        name = f"device {next(_numbers)}"
        self.b.export(name, device, rights=rights, port=port)
        return await self.to_b.find(name)


class Reasons:
    """Why the connections of a node were lost."""

    def __init__(self, node: Node) -> None:
        self.told: list[str] = []
        node.subscribe(self._hear)

    def _hear(self, event: object) -> None:
        if isinstance(event, NodeDown):
            self.told.append(str(event.reason))


class Puppet:
    """A node whose bytes a test moves by hand: it has proved itself, and does nothing alone."""

    def __init__(self, stream: ByteStream, name: str = "b", dialled: bool = True) -> None:
        self.stream = stream
        setup = Setup(
            me=Identity(name, os.urandom(16)),
            exports=Exports(),
            codec=Msgspec(),
            secrets=(SECRET,),
            heartbeat=0.01,
        )
        self.session = Session(setup, dialled=dialled, now=0, waiter=QUIET)

    @classmethod
    async def dial(cls, address: str, name: str = "b") -> Puppet:
        """One that has connected."""
        puppet = cls(await dial(parse(address)), name)
        await puppet.shake()
        return puppet

    async def shake(self) -> None:
        """Prove itself."""
        with anyio.fail_after(20):
            while True:
                await self.write()
                if self.session.is_up:
                    return
                await self.read()

    async def read(self) -> None:
        """Take some bytes."""
        self.session.receive(await self.stream.receive(1 << 16), 0)

    async def write(self) -> None:
        """Write all that it has to say."""
        while data := self.session.outbox.take():
            await self.stream.send(data)


class Way:
    """A way in which two nodes can be connected."""

    def __init__(self, kind: str, folder: Path, papers: Papers | None = None) -> None:
        self.kind = kind
        self.folder = folder
        self.papers = papers

    def address(self, host: str = "127.0.0.1") -> str:
        """Where to listen."""
        if self.kind == "unix":
            return f"unix://{self.folder}/{next(_numbers)}"
        return f"{self.kind}://{host}:0"

    def node(self, name: str, **options: Any) -> Node:
        """A node that can be connected in this way."""
        if self.papers is not None:
            options.setdefault("tls", self.papers.tls(name))
        options.setdefault("secret", SECRET)
        return Node(name, **options)

    async def connect(self, a: Node, b: Node, **options: Any) -> Peer:
        """Have one connect to the other."""
        if self.kind != "memory":
            return await a.connect(await b.listen(self.address()), expect=b.name, **options)
        here, there = pair()
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: b.attach(there, dial=False))
            peer = await a.attach(here, dial=True, expect=b.name)
        return peer  # noqa: RET504 - mypy takes a group of tasks for one that swallows

    @contextlib.asynccontextmanager
    async def pair(self, **options: Any) -> AsyncIterator[Pair]:
        """Two nodes, connected in this way."""
        async with self.node("b", **options) as b, self.node("a", **options) as a:
            with anyio.fail_after(20):
                to_b = await self.connect(a, b)
                await until(lambda: b.peers())
            yield Pair(a, b, to_b, b.peer("a"))


def monitor(line: Line, mode: LinkMode = LinkMode.MONITOR) -> Device:
    """A new Device, linked with what a Line leads to."""
    device = Device()
    device.link(line, mode)
    return device


# -- fixtures, which conftest.py hands on: for mypy, there can be one conftest only ---------------


@pytest.fixture(scope="session")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    """Certificates of two authorities that do not believe each other."""
    return Papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture(params=["tcp", "unix", "tls", "memory"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    """Each way in which two nodes can be connected."""
    papers = request.getfixturevalue("papers") if request.param == "tls" else None
    return Way(request.param, tmp_path, papers)


@pytest.fixture
def discreet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test in which the secret gets into the log, be it as a variable in a traceback."""
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        told(record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            told_error(record.exc_info[1])


def told(text: str, what: bytes = SECRET) -> None:
    """Fail if a secret is in a text."""
    forms = (repr(what)[2:-1], what.hex(), base64.b64encode(what).decode(), what.hex(" "))
    for form in forms:
        assert form not in text


def told_error(error: BaseException, what: bytes = SECRET) -> None:
    """Fail if it is in an exception, or in what a debugger's traceback shows of it."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    told("".join(shown.format()), what)


def sockets() -> set[str]:
    """The sockets that this process has."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # what lists them is gone
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in found if name.startswith("socket:")}


@pytest.fixture(scope="module")
def no_socket_left() -> Iterator[None]:
    """Fail if the tests of a file leave a socket open. (The loop of one test has some, too.)"""
    before = sockets()
    yield
    gc.collect()
    assert sockets() - before == set()


def living() -> Counter[str]:
    """How many objects there are that make up nodes and Devices, and may be collected."""
    kinds = (Device, Node, Peer, Session, Driver, Switchboard, Outpost)
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in kinds)


@pytest.fixture
def nothing_of_nodes_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test that leaves a Device, or anything of a node."""
    before = living()
    yield
    caplog.get_records("call").clear()  # exceptions in it have frames
    left = Counter[str]()
    for _ in range(3):  # what is told in a finalizer waits to be heard
        gc.collect()
        left = living() - before
        if not left:
            break
    assert left == Counter()
