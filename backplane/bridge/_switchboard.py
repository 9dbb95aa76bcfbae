"""The connections of a node: how they come to be, and who hears when one is there or gone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import final

import anyio
from anyio.abc import ByteStream, SocketAttribute

from backplane import NoConnection
from backplane.lowlevel import Parking, clock, new_parking

from ._addresses import Address
from ._auth import PLAIN
from ._driver import Driver
from ._errors import (
    AuthError,
    DuplicateError,
    FrameError,
    NameTakenError,
    NotConnectedError,
    ProofRefusedError,
    VersionError,
)
from ._news import Hush, News, logger
from ._peer import Peer
from ._peers import Peers
from ._reach import Reach
from ._session import Session
from ._setup import Setup
from ._status import NodeDown, NodeUp, PeerStats
from ._tls import TLS, Secured, secure
from ._transports import StreamAttribute, extra, tune

_LINES, _PERIOD = 30, 60.0
"""How many refused connections are logged, in how many seconds."""
_GRAVE = (AuthError, NameTakenError, VersionError)
"""What those who operate the node have to mend."""
_UNBELIEVED = "it closed without a word, as one does that does not believe this node's certificate"


@final
class Try:
    """A connection that has not proved itself yet, as long as it counts as one."""

    def __init__(self, counter: Counter[str], source: str) -> None:
        self._counter: Counter[str] | None = counter
        self._source = source
        counter[source] += 1

    def over(self) -> None:
        """It has, or it is gone."""
        counter, self._counter = self._counter, None
        if counter is not None:
            counter[self._source] -= 1
            if counter[self._source] <= 0:
                del counter[self._source]


@final
class Switchboard:
    """All connections of a node. It is for the node's loop alone."""

    def __init__(self, setup: Setup, tls: TLS | None) -> None:
        self._node = setup.me.name
        self._tls = tls
        self._peers = Peers(setup.limits.sessions)
        reach = self.reach = Reach(setup.me, setup.exports, self._peers)
        self.setup = replace(
            setup,
            admit=self._peers.admit,
            on_up=self._on_up,
            on_down=self._on_down,
            on_hurry=lambda session, due: session.driver.hurry(due),
            find_line=reach.find_line,
            wire_line=reach.wire_line,
        )
        self.news = News(self._node)
        self.refused: Counter[str] = Counter()
        """How many connections ended before they were up, by the kind of reason."""
        self._of: dict[Session, Peer] = {}
        self._hush = Hush(_LINES, _PERIOD)
        self._watchers: list[Parking] = []

    def __len__(self) -> int:
        return len(self._of)

    @property
    def has_tls(self) -> bool:
        """Whether the node has certificates."""
        return self._tls is not None

    def peers(self) -> list[Peer]:
        """The nodes that are connected."""
        return list(self._of.values())

    def peer(self, name: str) -> Peer | None:
        """The one of that name."""
        session = self._peers.get(name)
        return None if session is None else self._of.get(session)

    def stats(self) -> tuple[PeerStats, ...]:
        """What the connections have done."""
        return tuple(map(_stats, self._of))

    # -- how they come to be -------------------------------------------------------------

    async def answer(self, stream: ByteStream, address: Address, source: str, tried: Try) -> None:
        """Be a connection that somebody else has made, until it is over."""
        try:
            secured = await self._secure(stream, address, False, source)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no connection
            self.refuse(source, error)
            return
        driver = self._drive(secured, dialled=False, expect=None, source=_from(stream, source))
        driver.session.tried = tried
        await driver.run()

    async def join(
        self,
        start: Callable[..., object],
        stream: ByteStream,
        address: Address,
        *,
        dialled: bool,
        expect: str | None,
        patience: float,
    ) -> Peer:
        """Make a connection of a stream, and wait until it is up.

        Should there be one with that node already, take that; it has ``patience``
        seconds to come up.

        Raises:
            DuplicateError: It did not.
            NameTakenError: There is one with another node of that name, at either end.
        """
        secured = await self._secure(stream, address, dialled, str(address))
        driver = self._drive(secured, dialled, expect, str(address))
        session = driver.session
        try:
            start(driver.run)
        except BaseException:  # the node has ended meanwhile
            await anyio.aclose_forcefully(secured.stream)
            raise
        try:
            await self.until(lambda: session.is_up or session.is_down)
        except BaseException:
            session.eof(why="it was cancelled")
            raise
        if session.is_up:
            return self._of[session]
        reason = session.reason
        assert reason is not None
        if isinstance(reason, DuplicateError):
            await self.until(lambda: self._same(session) is not None, patience)
            peer = self._same(session)
            if peer is not None:
                return peer
        if isinstance(reason, FrameError) and session.peer is None:
            raise FrameError(f"what answers at {session.whom} is no node: {reason}") from reason
        silent = session.peer is None and isinstance(reason, NotConnectedError)
        if silent and secured.names is not None:  # with TLS 1.3 that is how a dialler is told
            where = session.whom
            attempt = f"connect with {where}"
            raise ProofRefusedError(session.peer_name, attempt, _UNBELIEVED) from reason
        raise reason

    def _same(self, refused: Session) -> Peer | None:
        """The peer of a connection that was refused, by another connection."""
        session = self._peers.get(refused.peer_name)
        same = session is not None and session.peer == refused.peer
        return self._of.get(session) if session is not None and same else None

    async def _secure(
        self, stream: ByteStream, address: Address, dialled: bool, where: str
    ) -> Secured:
        if address.kind != "tls":
            return Secured(stream, extra(stream, StreamAttribute.binding, PLAIN))
        assert self._tls is not None
        return await secure(self._tls, stream, dialled, where, self.setup.limits.handshake)

    def _drive(self, secured: Secured, dialled: bool, expect: str | None, source: str) -> Driver:
        tune(secured.stream, self.setup.dead_after)
        source = extra(secured.stream, StreamAttribute.source, source)
        return Driver(
            secured.stream,
            lambda waiter, now: Session(
                self.setup,
                dialled=dialled,
                now=now,
                waiter=waiter,
                binding=secured.binding,
                certified=secured.names,
                expect=expect,
                source=source,
            ),
        )

    async def until(self, ready: Callable[[], bool], patience: float | None = None) -> None:
        """Wait until something is so, as long as patience lasts; it changes with connections."""
        parking = new_parking()
        self._watchers.append(parking)
        now = clock()
        deadline = None if patience is None else now() + patience
        try:
            while not ready():
                if deadline is None:
                    await parking.park()
                elif now() < deadline:
                    await parking.park_until(deadline)
                else:
                    return
        finally:
            self._watchers.remove(parking)

    async def close(self) -> None:
        """End those that are up in good order."""
        now = clock()
        sessions = list(self._of)
        for session in sessions:
            session.close(now())
        with anyio.move_on_after(self.setup.limits.closing):
            await self.until(lambda: all(session.is_down for session in sessions))

    # -- what becomes of them ------------------------------------------------------------

    def _on_up(self, session: Session) -> None:
        peer = self._of[session] = Peer(session)
        if session.tried is not None:
            session.tried.over()
        logger.info("node %r: connected with %r (%s)", self._node, peer.name, session.source)
        self.news.tell(NodeUp(peer.name, peer.incarnation))
        self._wake()

    def _on_down(self, session: Session) -> None:
        self._peers.forget(session)
        peer = self._of.pop(session, None)
        reason = session.reason
        assert reason is not None
        _forget_frames(reason)
        if peer is None:
            self.refuse(session.source, reason)
        else:
            logger.info("node %r: connection with %r is gone: %s", self._node, peer.name, reason)
            peer.end(NoConnection(peer.name))
            self.news.tell(NodeDown(peer.name, peer.incarnation, reason))
        self._wake()
        session.driver.stop()

    def refuse(self, source: str, reason: BaseException | str) -> None:
        """Count a connection that did not come to be."""
        kind = reason if isinstance(reason, str) else type(reason).__name__
        self.refused[kind] += 1
        level = logging.WARNING if type(reason) in _GRAVE else logging.INFO
        text = "node %r: no connection with %s: %s"
        self._hush.log(clock()(), level, text, self._node, source, reason)

    def _wake(self) -> None:
        for parking in list(self._watchers):
            parking.wake()


def _from(stream: ByteStream, source: str) -> str:
    """Who is at the other end, to tell him from others of the same machine."""
    port = extra(stream, SocketAttribute.remote_port, None)
    return source if port is None else str(Address("tcp", source, port)).partition("//")[2]


def _forget_frames(error: BaseException | None) -> None:
    """Take the tracebacks from an exception and its causes.

    They are of this package and its streams. They would keep the session alive
    for as long as somebody keeps the reason of its end, be it in a log; and who
    shows variables with them would show proofs.
    """
    for _ in range(10):
        if error is not None:
            error.__traceback__ = None
            error = error.__cause__ or error.__context__


def _stats(session: Session) -> PeerStats:
    return PeerStats(
        session.peer_name,
        session.source,
        session.bytes_in,
        session.outbox.bytes_out,
        session.frames_in,
        session.outbox.frames_out,
        session.outbox.waiting,
        len(session.mirror),
        len(session.calls),
        session.mirror.unknown,
    )
