"""Several nodes with clusters in one program, and processes on them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.stapled import StapledByteStream

from backplane.bridge import Node
from backplane.otp import Groups, Pid, Registry, Scope, current_process
from backplane.otp._far import FarProcess
from backplane.otp.cluster import Cluster

T = TypeVar("T")

SECRET = b"what the nodes of the tests share"


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for what another node, or the system, brings about."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.001)


def pipe() -> tuple[BufferedByteReceiveStream, Any]:
    send, receive = anyio.create_memory_object_stream[bytes](4)
    return BufferedByteReceiveStream(receive), send


def pair() -> tuple[ByteStream, ByteStream]:
    """Two streams in memory, whose ends are joined."""
    (a, to_a), (b, to_b) = pipe(), pipe()
    return StapledByteStream(to_b, a), StapledByteStream(to_a, b)


@dataclass(eq=False)
class Side:
    """One node, its cluster, and a scope for its processes."""

    node: Node
    cluster: Cluster
    registry: Registry[str, Any]
    groups: Groups
    scope: Scope

    def see(self, other: Side, pid: Pid) -> Pid:
        """A process as this node has it from another one: as if that had sent its pid."""
        seen: Pid = self.node.decode(other.node.encode(pid))
        return seen

    def is_with(self, other: Side) -> bool:
        """Whether it is connected with another one."""
        return any(peer.name == other.node.name for peer in self.node.peers())

    def far(self) -> list[FarProcess]:
        """The processes of others that this one knows."""
        return list(self.cluster._pids._far.values())

    async def run(
        self, fn: Callable[..., Awaitable[T]], *args: object, trap_exit: bool = False
    ) -> T:
        """Run a function as a process, and return or raise what it does."""
        made: list[T] = []

        async def process() -> None:
            made.append(await fn(*args))

        pid = self.scope.spawn(process, trap_exit=trap_exit)
        with anyio.fail_after(20):
            reason = await pid.wait()
        if made:
            return made[0]
        raise reason if isinstance(reason, Exception) else AssertionError(reason)


@contextlib.asynccontextmanager
async def side(name: str, **options: Any) -> AsyncIterator[Side]:
    """One node."""
    registry: Registry[str, Any] = Registry(f"names of {name}")
    groups = Groups(f"groups of {name}")
    of_node = {key: options.pop(key) for key in ("limits", "codec") if key in options}
    async with (
        Node(name, secret=SECRET, **of_node) as node,
        Cluster(node, registry=registry, groups=groups, **options) as cluster,
        Scope(f"processes of {name}", grace=0.1) as scope,
    ):
        yield Side(node, cluster, registry, groups, scope)


async def connect(a: Side, b: Side, known: bool = True) -> None:
    """Connect two nodes, and wait until they know of each other's names and groups."""
    here, there = pair()
    async with anyio.create_task_group() as tg:
        tg.start_soon(lambda: b.node.attach(there, dial=False))
        await a.node.attach(here, dial=True, expect=b.node.name)
    if known:
        await a.cluster.await_node(b.node.name, 20)
        await b.cluster.await_node(a.node.name, 20)


async def part(a: Side, b: Side) -> None:
    """Lose the connection of two nodes, in good order."""
    a.node.peer(b.node.name).close()
    await until(lambda: not a.is_with(b) and not b.is_with(a))


def cut(a: Side, b: Side) -> None:
    """Lose it at once: what was on its way is lost."""
    for here, there in ((a, b), (b, a)):
        session = here.node.peer(there.node.name)._session
        session.down(ConnectionError("cut"))


@contextlib.asynccontextmanager
async def sides(*names: str, connected: bool = True, **options: Any) -> AsyncIterator[list[Side]]:
    """Several nodes, each connected with each."""
    async with contextlib.AsyncExitStack() as stack:
        made = [await stack.enter_async_context(side(name, **options)) for name in names]
        for index, b in enumerate(made if connected else []):
            for a in made[:index]:
                await connect(a, b)
        yield made


async def idle() -> None:
    """Live until told to end."""
    await current_process().receive()


async def settled() -> None:
    """Let all that is on its way come."""
    for _ in range(20):
        await anyio.sleep(0.001)


async def deaf() -> None:
    """Live until cancelled, whatever comes."""
    await anyio.sleep_forever()


async def collect(into: list[Any]) -> None:
    """Put what comes into a list."""
    me = current_process()
    while True:
        into.append(await me.receive())


class Leak:
    """Whether nodes have as much as before of what a pid leaves."""

    def __init__(self, sides: tuple[Side, ...]) -> None:
        self._sides = sides
        self._before: list[tuple[int, ...]] = []

    @classmethod
    async def of(cls, *sides: Side) -> Leak:
        """Count, as soon as all that is on its way has come."""
        self = cls(sides)
        now = self.count()
        while now != self._before:
            self._before = now
            await anyio.sleep(0.05)
            now = self.count()
        return self

    def count(self) -> list[tuple[int, ...]]:
        """How much there is, node by node."""
        for _ in range(3):  # what is told in a finalizer waits to be heard
            gc.collect()
        return [
            (
                len(each.node._exports),
                len(each.cluster._pids._far),
                len(each.cluster._pids._ports),
                *(len(peer._session.mirror) for peer in each.node.peers()),
                *(len(peer._session.calls) for peer in each.node.peers()),
            )
            for each in self._sides
        ]

    async def is_gone(self) -> None:
        """Wait until it is."""
        for _ in range(200):
            if self.count() == self._before:
                return
            await anyio.sleep(0.02)
        now = self.count()
        assert now == self._before, (now, self._before)
