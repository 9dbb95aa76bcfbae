"""Connections between nodes over a NATS server, instead of sockets of their own.

For nodes that do not know each other's addresses, or cannot reach each other,
but all reach the same messaging engine::

    pip install 'async-backplane[nats]'

What crosses it is the same as over a socket: the proof of who is there, links,
messages, calls, and the signs of life, all from end to end. The server carries
datagrams from the inbox of one node to that of another, and nothing depends on
it but that they arrive. They are numbered; when one is lost, repeated or comes
out of its order, the connection is lost, and everything that is linked across
it hears ``NoConnection``. A node that dies without a word is missed after the
nodes' ``dead_after``, as over a socket that nobody closes.

Datagrams are sealed (ChaCha20-Poly1305) with keys that are derived from the
nodes' secret for each connection: the server, and others who use it, see who
talks to whom and how much, but cannot read anything, nor write or change
anything unnoticed. Two things are left. Who may subscribe to ``bp.>`` and
publish there can break connections, by repeating what was sent. And who has
recorded it and learns the secret later can read it. So let only your nodes use
``bp.<cluster>.>``, and use TLS to the server.

Subjects: ``bp.<cluster>.name.<node>`` is where a node is called, and
``bp.<cluster>.<incarnation>`` its inbox; below that the server itself says that
nobody listens to a name.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, final

import anyio
from anyio.abc import TaskStatus

from backplane import Device, LinkError, LinkMode

from ._auth import check_name
from ._datagram_stream import DatagramStream
from ._datagrams import MOST, WINDOW
from ._errors import AddressError, BridgeError, NotConnectedError
from ._gate import persist
from ._inbox import Ignored, Inbox, subject_of
from ._leave import leave
from ._nats_client import NatsClient
from ._news import Attempts
from ._node import Node, Peer
from ._seal import LEAST_WINDOW
from ._status import Retry

__all__ = ["NatsBroker", "NatsStats"]

_CLUSTER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_WAITING = 64 << 20
"""Bytes that may wait to be published, for all connections together."""
_PARTING = 1.0
"""Seconds in which connections are told that the broker's block has ended."""


@final
@dataclass(frozen=True, slots=True)
class NatsStats:
    """What a broker has, and what it has left."""

    connected: bool
    """Whether there is a connection with a server now."""
    connections: int
    """How often there has been one."""
    streams: int
    """Connections between nodes."""
    dropped: int
    """Datagrams of this side that were not published. Each breaks a connection."""
    ignored: Mapping[str, int]
    """Datagrams of others that meant nothing, by kind."""


@final
class NatsBroker:
    """A NATS server, as nodes of this process reach each other's through it.

    It lives in an ``async with`` block, outside that of the nodes that use it,
    in the same loop. The client of the server has a thread of its own, so the
    loop may be asyncio, uvloop or trio. If the server goes away, it is connected
    with again; connections between nodes that have lost nothing go on.

    Example::

        async with NatsBroker("nats://127.0.0.1:4222", cluster="shop") as broker:
            async with Node("a", secret=secret) as node:
                await broker.listen(node)  # others may call "a"
                peer = await broker.connect(node, "b")
                jobs = await peer.find("jobs")
                device.link(jobs)

    Two nodes that listen under one name are a mistake, which nothing can
    prevent: whichever answers first gets the call.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "nats://127.0.0.1:4222",
        *,
        cluster: str,
        seal: bool = True,
        window: int = WINDOW,
        timeout: float = 10.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Make one; nothing is connected yet.

        Args:
            servers: Addresses of one server, or of several that are one cluster of NATS.
            cluster: Which nodes belong together: 1 to 64 letters, digits, ``_`` and ``-``.
            seal: Whether to seal what is sent. All nodes must do the same. Without it,
                who reaches the server reads all, and can change it.
            window: Bytes that a node may be sent on one connection before it takes them: who
                is slower is waited for, and not thrown out by the server.
            timeout: Seconds to wait for the first connection with the server.
            options: For ``connect`` of ``nats-py``: ``tls``, ``user_credentials`` and so on.

        Raises:
            ValueError: The cluster or the window is none that will do.
            ModuleNotFoundError: To seal takes the package ``cryptography``.

        Example:
            >>> NatsBroker(cluster="my shop")
            Traceback (most recent call last):
            ...
            ValueError: cluster='my shop': write 1 to 64 of the characters A-Z a-z 0-9 _ -
        """
        if not _CLUSTER.fullmatch(cluster):
            raise ValueError(
                f"cluster={cluster!r}: write 1 to 64 of the characters A-Z a-z 0-9 _ -"
            )
        if window < LEAST_WINDOW:
            raise ValueError(f"window={window!r}: must be at least {LEAST_WINDOW} bytes")
        if seal:
            import cryptography  # noqa: F401 - find out now
        self._cluster = cluster
        self._seal = seal
        self._window = window
        self._timeout = timeout
        self._ignored = Ignored()
        self._inboxes: dict[Node, Inbox] = {}
        self._making = anyio.Lock()
        self._client = NatsClient(
            [servers] if isinstance(servers, str) else servers,
            options or {},
            most_waiting=_MOST_WAITING,
        )
        self._stack = contextlib.AsyncExitStack()

    # -- its life ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect with the server.

        Raises:
            NotConnectedError: There is none, or it does not let this process in.
        """
        await self._client.start(self._timeout)
        try:
            self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        except BaseException:
            await self._client.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            with anyio.move_on_after(_PARTING, shield=True):
                await self._part()
        finally:
            self._tasks.cancel_scope.cancel()
            try:
                swallowed = await leave(self._stack, exc)
            finally:
                await self._client.stop()
        return swallowed

    async def _part(self) -> None:
        """Break what connections there are; their peers hear of it."""
        for inbox in self._inboxes.values():
            for stream in list(inbox.streams.values()):
                stream.lose("the block of the NatsBroker has ended")
        for inbox in list(self._inboxes.values()):
            await inbox.empty()

    # -- what it does ------------------------------------------------------------------------

    async def listen(self, node: Node) -> str:
        """Let other nodes call this one by its name, until it ends.

        Returns:
            The subject where it is called.

        Raises:
            AddressError: It has no secret.
            NotConnectedError: The server is not there.
        """
        inbox = await self._inbox(node)
        subject = subject_of(self._cluster, node.name)
        await self._client.subscribe(subject, inbox.hear_call)
        return subject

    async def connect(self, node: Node, name: str, *, retry: Retry | None = None) -> Peer:
        """Connect a node with another one; if they have a connection already, take that.

        Args:
            node: The one that calls. It need not listen.
            name: The one that is called.
            retry: As for ``Node.connect``.

        Raises:
            AddressError: The node has no secret.
            AuthError: The peer is not who it says.
            NotConnectedError: Nobody listens under that name, or has another secret, or the
                server is not there.
            TimeoutError: The peer did not finish the handshake in time.
            ValueError: It is no name, or the node's own.
        """
        if check_name(name) == node.name:
            raise ValueError(f"node {name!r} cannot connect with itself")
        attempts = Attempts(node.name, f"node {name!r}")
        for delay in [] if retry is None else retry.delays():
            try:
                return await self._connect(node, name)
            except (NotConnectedError, OSError) as error:  # TimeoutError is one
                attempts.failed(error)
            await anyio.sleep(delay)
        return await self._connect(node, name)

    async def _connect(self, node: Node, name: str) -> Peer:
        if not self._client.connected:
            raise NotConnectedError(name, f"call node {name!r}", "the NATS server is not there")
        inbox = await self._inbox(node)

        async def dial(patience: float) -> Peer:
            return await node._gate.attach(await inbox.call(name), True, name, patience)

        return await persist(dial, node._limits.handshake)

    def stats(self) -> NatsStats:
        """What there is now, and was up to now."""
        client = self._client
        return NatsStats(
            client.connected,
            client.connections,
            sum(len(inbox.streams) for inbox in self._inboxes.values()),
            client.dropped,
            self._ignored.counts(),
        )

    def __repr__(self) -> str:
        state = "connected" if self._client.connected else "not connected"
        return f"<NatsBroker {self._cluster!r}, {state}>"

    # -- inboxes -----------------------------------------------------------------------------

    async def _inbox(self, node: Node) -> Inbox:
        """A node's inbox, made when it is first used."""
        if not node._entered:
            raise RuntimeError("enter the node first: async with Node(...) as node")
        if not (node._setup.secrets or node._setup.secrets_of):
            raise AddressError(
                f"node {node.name!r} has no secret, and whoever reaches the NATS server can call "
                "it: give it secret=..., at least 16 random bytes that all your nodes share"
            )
        async with self._making:
            inbox = self._inboxes.get(node)
            if inbox is None:
                inbox = await self._tasks.start(self._keep, node)
        return inbox

    async def _keep(self, node: Node, *, task_status: TaskStatus[Inbox]) -> None:
        """Have an inbox, and let in who calls, until the node ends."""
        client = self._client
        inbox = Inbox(
            node, self._cluster, client.publish, self._ignored,
            seal=self._seal, window=self._window, most=lambda: min(MOST, client.max_payload),
        )  # fmt: skip
        below = f"{inbox.subject}.*"
        try:
            await client.subscribe(inbox.subject, inbox.hear)
            await client.subscribe(below, inbox.hear_status)
            self._inboxes[node] = inbox
            task_status.started(inbox)
            async with anyio.create_task_group() as tg:
                tg.start_soon(_cancel_at_end, node.device, tg.cancel_scope)
                while True:
                    stream, caller = await inbox.next_caller()
                    tg.start_soon(_let_in, inbox, stream, caller)
        finally:
            self._inboxes.pop(node, None)
            for subject in (inbox.subject, below, subject_of(self._cluster, node.name)):
                client.unsubscribe(subject)


async def _cancel_at_end(device: Device, scope: anyio.CancelScope) -> None:
    watcher = Device("inbox")
    with contextlib.suppress(LinkError):  # it has ended
        watcher.link(device.line(), LinkMode.MONITOR)
        await watcher.receive()
    scope.cancel()


async def _let_in(inbox: Inbox, stream: DatagramStream, caller: str) -> None:
    try:
        await inbox.node.attach(stream, dial=False, expect=caller)
    except (BridgeError, OSError):
        pass  # the node has counted and logged it
    finally:
        inbox.pending -= 1
