"""A node's end of what carries datagrams: who calls, who answers, and whose each datagram is."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol, final

import anyio

from backplane.lowlevel import Parking, new_parking

from ._auth import NONCE
from ._datagram_stream import DatagramStream
from ._datagrams import SESSION, Datagrams, Seal, session_of
from ._errors import AddressError, NotConnectedError
from ._node import Node
from ._seal import (
    VERSION,
    Answer,
    ChaCha,
    Open,
    is_answer,
    is_open,
    is_proved_answer,
    pack_answer,
    pack_open,
    proved_open,
    read_answer,
    read_open,
    transcript,
)
from ._transports import StreamAttribute

_logger = logging.getLogger("backplane.bridge")

_NOBODY = "503"
_MOST_OPENINGS = 64
_MOST_ANSWERS = 16


class Publish(Protocol):
    """Has a datagram carried to a subject; False if it surely is not. For any thread."""

    def __call__(self, subject: str, data: bytes, reply: str = "") -> bool:
        """Do it; ``reply`` is where to say that nobody listens."""
        ...


class Ignored:
    """Counts, from any thread, what was left because it is of no meaning here."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def counts(self) -> dict[str, int]:
        """How much there was of each kind."""
        with self._lock:
            return dict(self._counts)


@final
class _Calling:
    """A call that was not answered yet."""

    def __init__(self) -> None:
        self.parking = new_parking()
        self.answers: deque[bytes] = deque()
        self.nobody = False


@final
class Inbox:
    """Makes streams of datagrams for a node. What hears is for any thread, the rest for its loop.

    Only who knows the node's secret causes anything but a count: a stranger's
    datagrams leave no state behind.
    """

    def __init__(
        self,
        node: Node,
        cluster: str,
        publish: Publish,
        ignored: Ignored,
        *,
        seal: bool,
        window: int,
        most: Callable[[], int],
    ) -> None:
        self.node = node
        self.subject = f"bp.{cluster}.{node.incarnation.hex()}"
        self.pending = 0
        """Connections that were answered and have not proved themselves yet."""
        self.streams: dict[bytes, DatagramStream] = {}
        self._cluster = cluster
        self._publish = publish
        self._ignored = ignored
        self._seal = seal
        self._window = window
        self._most = most
        self._calling: dict[bytes, _Calling] = {}
        self._answered: set[bytes] = set()
        """The calls of which connections there are."""
        self._openings: deque[bytes] = deque()
        self._answerer = new_parking()
        self._emptied: Parking | None = None

    # -- from any thread ---------------------------------------------------------------------

    def hear(self, subject: str, data: bytes, status: str | None) -> None:
        """Something has come to the inbox."""
        session = session_of(data)
        if session is not None:
            stream = self.streams.get(session)
            if stream is None:
                self._ignored("unknown connection")
            elif not stream.feed(data):
                self._ignored("too much")
            return
        answer = read_answer(data) if is_answer(data) else None
        if answer is None:
            self._ignored("garbage")
            return
        calling = self._calling.get(answer.session)
        if calling is None:
            self._ignored("late answer")
        elif len(calling.answers) >= _MOST_ANSWERS:
            self._ignored("too much")
        else:
            calling.answers.append(data)
            calling.parking.wake()

    def hear_call(self, subject: str, data: bytes, status: str | None) -> None:
        """Something has come to the node's name."""
        if not is_open(data):
            self._ignored("garbage")
        elif len(self._openings) >= _MOST_OPENINGS:
            self._ignored("too much")
        else:
            self._openings.append(data)
            self._answerer.wake()

    def hear_status(self, subject: str, data: bytes, status: str | None) -> None:
        """The engine says what became of a call: the subject's last word tells of which."""
        session = subject.rpartition(".")[2]
        for each, calling in list(self._calling.items()):
            if each.hex() == session and status == _NOBODY:
                calling.nobody = True
                calling.parking.wake()
                return
        self._ignored("status")

    # -- who calls ---------------------------------------------------------------------------

    async def next_caller(self) -> tuple[DatagramStream, str]:
        """Wait for a call and answer it: the stream, and who claims to have called.

        ``pending`` has become one more.
        """
        while True:
            while self._openings:
                caller = self._answer(self._openings.popleft())
                if caller is not None:
                    return caller
            await self._answerer.park()

    def _answer(self, datagram: bytes) -> tuple[DatagramStream, str] | None:
        opening = read_open(datagram)
        if opening is None or opening.to != self.node.name:
            self._ignored("garbage")
            return None
        secret = proved_open(datagram, self._secrets(opening.sender))
        if secret is None:
            self._ignored("stranger")
            return None
        if VERSION not in opening.versions:
            self._ignored("version")
            return None
        if opening.sealed != self._seal:
            _logger.warning(
                "node %r: no connection with %r: only one of them seals",
                self.node.name, opening.sender,
            )  # fmt: skip
            self._ignored("seal")
            return None
        if opening.session in self._answered or opening.incarnation == self.node.incarnation:
            self._ignored("repeated call")
            return None
        if self.pending >= self.node._limits.pending_handshakes:
            self._ignored("too many handshakes")
            return None
        answer = Answer(
            opening.session, self.node.incarnation, os.urandom(NONCE), self._window, VERSION
        )
        answered = pack_answer(answer, secret, datagram)
        stream = self._stream(opening, datagram, answer, answered, secret, dialled=False)
        self._answered.add(opening.session)
        self.pending += 1
        self._publish(self._inbox_of(opening.incarnation), answered)
        return stream, opening.sender

    # -- whom to call ------------------------------------------------------------------------

    async def call(self, name: str) -> DatagramStream:
        """Call a node by its name.

        Raises:
            NotConnectedError: It did not answer, or has another secret.
            AddressError: There is no secret for it.
        """
        secrets = self._secrets(name)
        if not secrets:
            raise AddressError(f"node {self.node.name!r} has no secret for {name!r}")
        opening = Open(
            os.urandom(SESSION), self.node.incarnation, os.urandom(NONCE), self._window,
            [VERSION], self.node.name, name, self._seal,
        )  # fmt: skip
        datagram = pack_open(opening, secrets[0])
        calling = self._calling[opening.session] = _Calling()
        try:
            subject = subject_of(self._cluster, name)
            if not self._publish(subject, datagram, f"{self.subject}.{opening.session.hex()}"):
                raise NotConnectedError(
                    name, f"call node {name!r}", "nothing more can wait to be carried"
                )
            with anyio.move_on_after(self.node._limits.handshake):
                while not calling.nobody:
                    while calling.answers:
                        answered = calling.answers.popleft()
                        answer = self._proved(answered, opening, datagram, secrets[0])
                        if answer is not None:
                            return self._stream(
                                opening, datagram, answer, answered, secrets[0], dialled=True
                            )
                    await calling.parking.park()
        finally:
            del self._calling[opening.session]
        why = "listens under that name" if calling.nobody else "answered who has the same secret"
        raise NotConnectedError(name, f"call node {name!r}", f"nobody {why}")

    def _proved(
        self, answered: bytes, opening: Open, datagram: bytes, secret: bytes
    ) -> Answer | None:
        answer = read_answer(answered)
        if (
            answer is None
            or answer.version not in opening.versions
            or not is_proved_answer(answered, secret, datagram)
        ):
            self._ignored("stranger")
            return None
        return answer

    async def empty(self) -> None:
        """Wait until there are no streams."""
        self._emptied = new_parking()
        while self.streams:
            await self._emptied.park()

    def _forget(self, session: bytes, call: bytes) -> None:
        self.streams.pop(session, None)
        self._answered.discard(call)
        if self._emptied is not None:
            self._emptied.wake()

    # -- both --------------------------------------------------------------------------------

    def _secrets(self, name: str) -> tuple[bytes, ...]:
        setup = self.node._setup
        return setup.secrets_of.get(name, setup.secrets)

    def _inbox_of(self, incarnation: bytes) -> str:
        return f"bp.{self._cluster}.{incarnation.hex()}"

    def _stream(
        self,
        opening: Open,
        opened: bytes,
        answer: Answer,
        answered: bytes,
        secret: bytes,
        *,
        dialled: bool,
    ) -> DatagramStream:
        said = transcript(opened, answered)
        session = said[:SESSION]  # not the call's: several may have answered it
        seal: Seal | None = ChaCha(secret, said, dialled=dialled) if self._seal else None
        peer = answer if dialled else opening
        name = opening.to if dialled else opening.sender
        stream = DatagramStream(
            Datagrams(
                session,
                dialled=dialled,
                seal=seal,
                window=self._window,
                peer_window=peer.window,
                most=self._most(),
            ),
            functools.partial(self._publish, self._inbox_of(peer.incarnation)),
            most_waiting=2 * self._window + (1 << 16),
            on_over=lambda: self._forget(session, opening.session),
            on_foreign=lambda: self._ignored("forged"),
            attributes={
                StreamAttribute.binding: lambda: said,
                StreamAttribute.source: lambda: f"{subject_of(self._cluster, name)}",
            },
        )
        self.streams[session] = stream
        return stream


def subject_of(cluster: str, name: str) -> str:
    """Where a node is called. Dots would make several words of its name."""
    return f"bp.{cluster}.name.{name.replace('.', '%2E')}"
