"""Nodes: this interpreter's presence among others, and the connections that it has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, final

import anyio
from anyio.abc import ByteStream

from backplane import Device, Failed, Line

from ._auth import INCARNATION, check_name
from ._codec import Codec, Msgspec, open_wire_line, pack_wire_line
from ._errors import NotConnectedError
from ._exports import Exports, Port, Right, check_port
from ._gate import Gate
from ._identity import Identity
from ._key import check_rights
from ._leave import leave
from ._limits import Limits
from ._peer import Peer
from ._secrets import Secrets, load, load_all
from ._setup import Setup
from ._status import NodeEvent, NodeStats, NodeUp, Retry
from ._switchboard import Switchboard
from ._tls import TLS

__all__ = ["Node", "Peer"]

_HEARTBEAT = 5.0
_DEAD_AFTER = 15.0


@final
class Node:
    """This interpreter among others: it dials, listens if it is told to, and exports.

    Nothing can be reached from outside unless it is exported, or a Line to it
    is sent. The node lives in an ``async with`` block, and all its connections
    end with that: in good order, also when the block is cancelled or raises, which takes
    ``Limits(closing=...)`` seconds at most, and is not cut short by another cancellation.
    It is for the loop of that block, but Lines that lead to other nodes may be used anywhere.

    Example::

        async with Node("a", secret=secret) as node:
            peer = await node.connect("tcp://127.0.0.1:7000", expect="b")
            jobs = await peer.find("jobs")
            device.link(jobs)
    """

    device: Device
    """Ends when the node does."""

    def __init__(
        self,
        name: str,
        *,
        secret: Secrets | None = None,
        secrets: Mapping[str, Secrets] | None = None,
        tls: TLS | None = None,
        limits: Limits | None = None,
        heartbeat: float = _HEARTBEAT,
        dead_after: float = _DEAD_AFTER,
        codec: Codec | None = None,
        tracebacks: bool = False,
    ) -> None:
        """Make a node. It has no connections, and is not listening.

        Args:
            name: What other nodes call it: unique among them.
            secret: What all nodes share. Several are accepted, for a change from one to
                another; the first is the one that is proved.
            secrets: What is shared with certain nodes only, by their names.
            tls: Certificates, for ``tls://`` addresses.
            limits: What is allowed.
            heartbeat: Seconds of silence after which a sign of life is asked for, twice as often.
            dead_after: Seconds of silence after which a connection is lost. A peer whose
                heartbeat is longer than a third of that is refused.
            codec: What makes bytes of users' messages; by default msgspec's MessagePack.
            tracebacks: Whether faults that cross to others carry tracebacks' text.

        Raises:
            ValueError: The name, a secret or a time is none that will do.
        """
        if not 0 < heartbeat <= dead_after / 3:
            raise ValueError(
                f"heartbeat={heartbeat!r} must be positive, and a third of dead_after="
                f"{dead_after!r} at most: one lost sign of life is no death"
            )
        self._me = Identity(check_name(name), os.urandom(INCARNATION))
        self.device = Device(f"node {name}")
        """Ends when the node does."""
        self._exports = Exports()
        setup = Setup(
            me=self._me,
            exports=self._exports,
            codec=codec or Msgspec(),
            secrets=_secrets(secret, secrets),
            secrets_of=load_all(secrets),
            limits=limits or Limits(),
            heartbeat=heartbeat,
            dead_after=dead_after,
            tracebacks=tracebacks,
        )
        self._board = Switchboard(setup, tls)
        self._setup = self._board.setup
        self._limits = setup.limits
        self._gate = Gate(self._board, name)
        self._stack = contextlib.AsyncExitStack()
        self._entered = False

    # -- who it is -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What others call it."""
        return self._me.name

    @property
    def incarnation(self) -> bytes:
        """By what this one is told from others of the same name, before or after it."""
        return self._me.incarnation

    def __repr__(self) -> str:
        return f"<Node {self.name!r}, {len(self._board)} connections>"

    # -- its life ------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a node lives in one block: make a new one")
        self._entered = True
        self._gate.open(await self._stack.enter_async_context(anyio.create_task_group()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            # What was said last is written, too, whyever the block ends.
            with anyio.CancelScope(shield=True):
                await self.close()
        finally:
            self._gate.close()
            try:
                swallowed = await leave(self._stack, exc)
            finally:
                self.device.disconnect(Failed(exc) if isinstance(exc, Exception) else None)
        return swallowed

    async def close(self) -> None:
        """End all connections in good order: what was sent before is written, if peers take it."""
        await self._board.close()

    # -- listening and dialling ----------------------------------------------------------

    async def listen(self, address: str, *, insecure_plaintext: bool = False) -> str:
        """Let others connect.

        Args:
            address: Where: ``tcp://host:port``, ``tls://host:port`` or ``unix:///path``;
                port 0 is any that is free.
            insecure_plaintext: Allow what is refused otherwise: a TCP address that others
                than this machine can reach, without TLS.

        Returns:
            The address, with the port.

        Raises:
            AddressError: It is none, or is not safe.
            OSError: It is taken, or not this machine's; the text says which address.
        """
        return await self._gate.listen(address, insecure_plaintext)

    async def connect(
        self,
        address: str,
        *,
        expect: str | None = None,
        retry: Retry | None = None,
        insecure_plaintext: bool = False,
    ) -> Peer:
        """Connect with another node; if there is a connection with it already, take that.

        Args:
            address: Where it listens.
            expect: What it is called: another one is refused.
            retry: How to go on if it cannot be reached, or is lost on the way: a new attempt
                after each wait. By default there is one attempt. A peer with the wrong
                secret or name is not tried again, and one that does not believe this
                node's proof three times in a row is not either. Each kind of failure is
                logged as a warning, the first time and then ever more rarely.
            insecure_plaintext: As for ``listen``.

        Raises:
            AddressError: The address is none, or is not safe.
            VersionError: The peer speaks another version, or one of the two has a heartbeat that
                is too slow for the other.
            AuthError: The peer has another secret, or another name.
            ProofRefusedError: It closed without a word when it saw this node's proof, as one
                does whose secret is another, and who is then not the first to prove itself.
            NameTakenError: Another node with this one's name is connected with the peer and
                alive, or another with the peer's name with this one.
            FullError: The peer has as many connections as it may.
            NotConnectedError: It cannot be reached, or has closed the connection: what all
                of these are but the first.
            TimeoutError: It did not finish the handshake in time.
        """
        return await self._gate.connect(address, expect, retry, insecure_plaintext)

    async def attach(
        self,
        stream: ByteStream,
        *,
        dial: bool,
        expect: str | None = None,
    ) -> Peer:
        """Connect over a stream of your own; the node closes it.

        Args:
            stream: Any; what it carries is not encrypted.
            dial: Whether this side begins. The other one must not.
            expect: What the peer is called.

        Raises:
            As for ``connect``.
        """
        return await self._gate.attach(stream, dial, expect)

    def take_child(self, stream: ByteStream, name: str, secret: bytes) -> None:
        """Have a process of this one's own connect, over a stream that nobody else has."""
        self._setup.secrets_of[name] = (secret,)
        self._gate.attach_soon(stream, name, lambda: self._setup.secrets_of.pop(name, None))

    # -- its peers -----------------------------------------------------------------------

    def peers(self) -> list[Peer]:
        """The nodes that it is connected with."""
        return self._board.peers()

    def peer(self, name: str) -> Peer:
        """The node of that name.

        Raises:
            NotConnectedError: There is no connection with it.
        """
        peer = self._board.peer(name)
        if peer is None:
            why = f"node {name!r} is not connected with this one: call node.connect(address) first"
            raise NotConnectedError(name, "", why)
        return peer

    def subscribe(self, hear: Callable[[NodeEvent], object]) -> Callable[[], None]:
        """Have each ``NodeUp`` and ``NodeDown`` told to a function, in the node's loop.

        Returns:
            What ends that.
        """
        return self._board.news.subscribe(hear)

    @contextlib.asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[NodeEvent]]:
        """Each ``NodeUp`` and ``NodeDown`` from now on, those that there are first."""
        first = [NodeUp(peer.name, peer.incarnation) for peer in self.peers()]
        with self._board.news.events(first) as events:
            yield events

    def stats(self) -> NodeStats:
        """What it has and what it has refused, now."""
        return NodeStats(
            self._board.stats(), self._gate.pending, len(self._exports), dict(self._board.refused)
        )

    # -- what can be reached -------------------------------------------------------------

    def export(
        self,
        name: str,
        target: Device | Line,
        *,
        allow: Iterable[str] = ("*",),
        rights: Right = Right.MONITOR | Right.TALK,
        port: Port | None = None,
    ) -> None:
        """Let others find a Device under a name.

        Args:
            name: What they ask for.
            target: The Device.
            allow: Patterns (as of files, ``worker-*``): which nodes find it.
            rights: What they may do. By default they hear of its end, and may talk to its
                port; not link it, which would let their faults stop its work, nor shut it
                down.
            port: What takes their messages and requests.

        Raises:
            LinkDownError: It has ended: nobody would find it.
            NotAllowedError: It lives on another node, and this one has no such right itself.
            ValueError: The name is taken.
            TypeError: ``allow`` is one string: write a list. Or the port is none.
            RuntimeError: The node has ended.
        """
        if isinstance(allow, str):
            raise TypeError(f"allow is a list of patterns: [{allow!r}]")
        if self._gate.is_over:
            raise RuntimeError("the node has ended: make a new one")
        if port is not None:
            check_port(port)
        line = target.line() if isinstance(target, Device) else target
        check_rights(line, rights, f"export it as {name!r} with these rights")
        self._exports.name(name, line, allow, rights, port)

    def serve(self, target: Device | Line, port: Port) -> Line:
        """Have a port take what is sent to a Device by those who are sent a Line to it."""
        check_port(port)
        line = target.line() if isinstance(target, Device) else target
        self._exports.serve(line, port)
        return line

    def revoke(self, what: str | Device | Line) -> bool:
        """Take an export back.

        Args:
            what: A name: nobody finds it any longer, and Lines that were found stay good.
                A Device: what others tell or ask it from now on does not reach it. Links that
                they have made stay, and fire.

        Returns:
            Whether it could be reached until now.
        """
        if isinstance(what, str):
            return self._exports.revoke_name(what)
        return self._exports.revoke(what.line() if isinstance(what, Device) else what)

    # -- lines ---------------------------------------------------------------------------

    @property
    def codec(self) -> Codec:
        """What makes bytes of users' messages."""
        return self._setup.codec

    def encode(self, value: Any) -> bytes:
        """The bytes of a message, as it would be sent; Lines in it are exported.

        Raises:
            EncodeError: It has no form on the wire.
        """
        return self.codec.encode(value, self.pack_line)

    def decode(self, data: bytes, as_type: Any = Any) -> Any:
        """The message of some bytes.

        Raises:
            PayloadError: It is none of that type.
        """
        return self.codec.decode(data, as_type, self.open_line)

    def pack_line(self, line: Line) -> bytes:
        """A Line as bytes, which lead back to its Device on this node and on others."""
        return pack_wire_line(self._board.reach.wire_line(line))

    def open_line(self, data: bytes) -> Line:
        """The Line of some bytes. One to a node that is not connected has ended.

        Raises:
            PayloadError: They are none.
        """
        return self._board.reach.find_line(open_wire_line(data))


def _secrets(secret: Secrets | None, others: Mapping[str, Secrets] | None) -> tuple[bytes, ...]:
    """What is asked of peers that have no secret of their own."""
    if secret is None and others is not None:
        return (os.urandom(32),)  # which nobody knows: those that were not named are strangers
    return load(secret)
