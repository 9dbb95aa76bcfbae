"""Processes across nodes: pids, calls, casts, monitors, links, names and groups.

A ``Cluster`` puts the OTP layer on a bridge's ``Node``. From then on a ``Pid`` may
be sent to other nodes, inside any message, and is used there like one of
theirs. The names in a registry and the members of groups are told to all nodes
that are connected::

    async with Node("a", secret=secret) as node, Cluster(node, registry=names) as cluster:
        await node.connect("tcp://127.0.0.1:7000", expect="b")
        counter = await cluster.await_name("counter", timeout=5)
        print(await call(counter, "add"))

A pid is a capability: who has one may talk to the process, link with it and
send it exit signals. A process that nobody has a pid of, and that has neither
name nor group, cannot be reached.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, final

import anyio

from backplane import Device, Line, LinkError
from backplane.bridge import (
    ExportError,
    Message,
    Node,
    NodeEvent,
    NodeUp,
    NotConnectedError,
    PayloadError,
    Peer,
    Request,
    Right,
)
from backplane.lowlevel import Parking, new_parking

from ._far import Ear, FarBusyError, FarProcessError
from ._groups import GroupJoined, GroupLeft, Groups
from ._handles import Pid, current_process
from ._ledger import until
from ._neighbours import LONGEST, Neighbour
from ._pids import Pids
from ._registry import Registered, Registry, Unregistered
from ._scope import Scope
from ._via import Via

__all__ = ["Cluster", "FarBusyError", "FarProcessError"]

T = TypeVar("T")

_logger = logging.getLogger("backplane.otp")

_SERVICE = "backplane.otp"


@final
class Cluster:
    """The processes of this node among those of others.

    It lives in an ``async with`` block, once, inside that of its node. When the block
    is left, nobody reaches the processes here any longer, and those of others have
    ended here, with ``NOCONNECTION``.

    Args:
        node: The node, which must live at least as long, and has no other cluster.
        types: Dataclasses, ``msgspec.Struct`` classes and enums that travel by name and
            arrive as what they were. Both sides have to know them. Of others, the fields
            arrive as a dict.
        registry: Whose names other nodes are told, as far as they are strings of no more
            than 255 characters. It must not keep duplicate keys.
        groups: Whose members other nodes are told, as far as the groups' names are such;
            theirs are put in here. By default there is one of the cluster's own.
    """

    node: Node
    registry: Registry[Any, Any] | None
    groups: Groups

    def __init__(
        self,
        node: Node,
        *,
        types: Iterable[type] = (),
        registry: Registry[Any, Any] | None = None,
        groups: Groups | None = None,
    ) -> None:
        if registry is not None and registry.duplicate:
            raise ValueError(f"registry {registry.name!r} keeps duplicate keys: no names for nodes")
        self.node = node
        self.registry = registry
        self.groups = groups if groups is not None else Groups("cluster")
        self._pids = Pids(node, types)
        self._neighbours: dict[str, Neighbour] = {}
        self._meeting: dict[Peer, bool] = {}
        """The nodes whose clusters are looked for, and whether that has to be done once more."""
        self._changed: set[Parking] = set()
        self._stack = contextlib.AsyncExitStack()
        self._entered = False

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return f"cluster of {self.node.name}"

    # -- its life ------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a cluster lives in one block: make a new one, on a new node")
        self._entered = True
        stack = self._stack
        self._tasks = await stack.enter_async_context(anyio.create_task_group())
        self._device = Device(self.name)
        ready = anyio.Event()
        # In a task of its own: the block is to have the scope that was around.
        scope = await self._tasks.start(Scope(self.name).run)
        self._teller = scope.spawn(self._tell_changes, ready, label="names and groups")
        await ready.wait()
        self._pids.live_here()
        self._pids.cluster = self.node.serve(self._device, self)
        self._pids.find_cluster = self._find_cluster
        self._pids.urge = self._urge
        self.node.export(_SERVICE, self._device, rights=Right.MONITOR | Right.TALK, port=self)
        self._tasks.start_soon(self._forget_messages)
        stack.callback(self.node.subscribe(self._on_node))
        for peer in self.node.peers():
            self._tasks.start_soon(self._meet, peer)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._pids.close()
        for name in list(self._neighbours):
            self._lose(name)
        self._device.disconnect()  # what is on its way to it is from honest nodes
        self._tasks.cancel_scope.cancel()
        # The group of tasks would wrap an exception of the block, which is not its own.
        if exc is not None and _has_cancellation(exc):
            return await self._stack.__aexit__(kind, exc, traceback)
        await self._stack.__aexit__(None, None, None)
        return False

    async def _forget_messages(self) -> None:
        """What others may send a Device is nothing to a cluster's, and is not to pile up."""
        async for _ in self._device:
            pass

    # -- names ---------------------------------------------------------------------------

    def whereis(self, key: str, /) -> Pid | None:
        """Who has a name: on this node, or else on the node whose name sorts first."""
        if self.registry is not None:
            pid = self.registry.whereis(key)
            if pid is not None:
                return pid
        for _, neighbour in sorted(self._neighbours.items()):
            pid = neighbour.names.get(key)
            if pid is not None and pid.alive:
                return pid
        return None

    def holders(self, key: str) -> dict[str, Pid]:
        """Who has a name on which node. Two nodes may both have one: nobody is killed for that."""
        found = {
            name: neighbour.names[key]
            for name, neighbour in sorted(self._neighbours.items())
            if key in neighbour.names and neighbour.names[key].alive
        }
        pid = None if self.registry is None else self.registry.whereis(key)
        if pid is not None:
            found[self.node.name] = pid
        return found

    def via(self, key: str) -> Via:
        """An address: whoever has a name when it is used, on whatever node."""
        return Via(self, key)

    async def await_name(self, key: str, timeout: float | None = None) -> Pid:  # noqa: ASYNC109
        """Wait until somebody has a name, on whatever node.

        Raises:
            TimeoutError: Nobody has, after so many seconds.
        """
        return await self._until(
            lambda: self.whereis(key), timeout, lambda: f"nobody has been {key!r}"
        )

    async def await_node(self, name: str, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until a node's names and members are known, and pids lead to its processes.

        Raises:
            TimeoutError: They are not, after so many seconds.
        """

        def look() -> Neighbour | None:
            neighbour = self._neighbours.get(name)
            known = neighbour is not None and neighbour.said and neighbour.reached
            return neighbour if known else None

        def why() -> str:
            connected = any(peer.name == name for peer in self.node.peers())
            return (
                f"node {name!r} {'has not said what it has' if connected else 'is not connected'}"
            )

        await self._until(look, timeout, why)

    async def _until(
        self,
        look: Callable[[], T | None],
        timeout: float | None,  # noqa: ASYNC109
        why: Callable[[], str],
    ) -> T:
        parking = new_parking()
        self._changed.add(parking)
        try:
            return await until(look, parking, timeout)
        except TimeoutError:
            raise TimeoutError(f"{self.name}: {why()}") from None
        finally:
            self._changed.discard(parking)

    def _tell_changed(self) -> None:
        for parking in list(self._changed):
            parking.wake()

    # -- other nodes ---------------------------------------------------------------------

    def _on_node(self, event: NodeEvent) -> None:
        if isinstance(event, NodeUp):
            with contextlib.suppress(NotConnectedError):
                self._tasks.start_soon(self._meet, self.node.peer(event.name))
        else:
            self._lose(event.name)

    async def _meet(self, peer: Peer) -> None:
        """Find the cluster of a node, and have it told all.

        A node that has none yet tells what it has as soon as it has one, and then it is
        looked for again.
        """
        again = peer in self._meeting
        self._meeting[peer] = True
        if again:
            return
        try:
            while self._meeting[peer]:
                self._meeting[peer] = False
                try:
                    self._found(peer.name, await peer.find(_SERVICE))
                except TimeoutError:
                    self._meeting[peer] = True
                except (ExportError, NotConnectedError, LinkError):
                    pass
        finally:
            del self._meeting[peer]

    def _found(self, node: str, line: Line) -> None:
        if self._find_cluster(node) is None:
            Ear(lambda _: self._lose(node)).listen(line)
            neighbour = self._neighbour(node)
            neighbour.line = line
            self._tasks.start_soon(neighbour.speak)
            self._tasks.start_soon(self._reach, neighbour)
            self._teller.send(neighbour)

    async def _reach(self, neighbour: Neighbour) -> None:
        await self._pids.found(neighbour)
        neighbour.reached = True
        self._tell_changed()

    def _neighbour(self, node: str) -> Neighbour:
        neighbour = self._neighbours.get(node)
        if neighbour is None:
            neighbour = self._neighbours[node] = Neighbour(self.node.name, node, self.groups)
        return neighbour

    def _urge(self, node: str, message: list[object]) -> None:
        neighbour = self._neighbours.get(node)
        if neighbour is not None and neighbour.line is not None:
            neighbour.urge(message)

    def _find_cluster(self, node: str) -> Line | None:
        neighbour = self._neighbours.get(node)
        return None if neighbour is None else neighbour.line

    def _lose(self, name: str) -> None:
        """A node is gone, or its cluster: so are its processes, its names and members."""
        neighbour = self._neighbours.pop(name, None)
        if neighbour is not None:
            self._pids.lose(name)
            neighbour.lose()
            self._tell_changed()

    def tell(self, message: Message) -> None:
        """For the node: take what another cluster says."""
        node = message.node
        try:
            match message.open(list[Any]):
                case ["D", bytes(address), reason]:
                    self._pids.end(node, address, reason)
                case ["w", list(addresses), Line() as line]:
                    self._pids.watch(node, addresses, line)
                case parts:
                    self._neighbour(node).hear(parts)
        except PayloadError as error:
            self._pids.complain(node, error)
        neighbour = self._neighbours.get(node)
        if neighbour is not None and neighbour.line is None:
            self._on_node(NodeUp(node, b""))  # it was not found before, or is being looked for
        self._tell_changed()

    def call(self, request: Request) -> None:
        """For the node: nothing is asked of a cluster."""
        raise PayloadError("a cluster answers no requests")

    # -- what is told --------------------------------------------------------------------

    async def _tell_changes(self, ready: anyio.Event) -> None:
        """The process that tells other nodes of names and members, in the order of the changes."""
        me = current_process()
        _, groups = self.groups.monitor_all()
        told = [(group, pid) for group, pids in groups.items() for pid in pids]
        members = Counter((group, pid) for group, pid in told if _is_told(group, pid))
        known = [] if self.registry is None else self.registry.subscribe()
        names = {key: pid for key, pid, _ in known if _is_told(key, pid)}
        ready.set()
        while True:
            match await me.receive():
                case Neighbour() as neighbour:
                    neighbour.greet(names.items(), members.elements())
                case GroupJoined(group=group, pids=(pid,)) if _is_told(group, pid):
                    members[group, pid] += 1
                    self._tell_all("members", [[group, pid]])
                case GroupLeft(group=group, pids=(pid,)) if _is_told(group, pid):
                    members[group, pid] -= 1
                    if not members[group, pid]:
                        del members[group, pid]
                    self._tell_all("left", group, pid.id)
                case Registered(key=key, pid=pid) if _is_told(key, pid):
                    names[key] = pid
                    self._tell_all("names", [[key, pid]])
                    self._tell_changed()
                case Unregistered(key=key, pid=pid) if names.get(key) == pid:
                    del names[key]
                    self._tell_all("free", key)
                case _:
                    pass

    def _tell_all(self, *message: Any) -> None:
        for neighbour in list(self._neighbours.values()):
            neighbour.tell(list(message))

    def __repr__(self) -> str:
        return f"<Cluster of {self.node.name!r} with {sorted(self._neighbours)}>"


def _has_cancellation(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return exc.subgroup(anyio.get_cancelled_exc_class()) is not None
    return isinstance(exc, anyio.get_cancelled_exc_class())


def _is_told(name: object, pid: Pid) -> bool:
    return isinstance(name, str) and len(name) <= LONGEST and pid._process.is_local
