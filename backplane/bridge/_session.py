"""One connection between two nodes, without a socket, a clock or a task.

Bytes and the time go in; bytes come out, and what they say happens to the mesh:
all of it at once, so nothing can come between. A session goes through these
states, and each of them takes only some kinds of frames (``TAKES``); any other
ends it::

    the one who dials                     the one who answers

    HELLO  sends Hello, awaits Hello      HELLO  awaits Hello, sends Hello
    PROOF  sends Proof, awaits Proof      PROOF  awaits Proof, sends Proof
    UP     sends Ready                    READY  awaits Ready
                                          UP
                    DOWN  closed by either, or lost

The dialler proves itself first: a stranger who dials learns nothing that he
could guess a secret from. The answerer takes a connection into use only when
the dialler has: so of two that cross, one can be given up unused.

A session brings its parts together, and is what they and the node know of each
other. Each part has a file: ``Handshake`` leads it as far as ``UP``, ``Pulse``
knows what time has run out, and ``Outbox`` what is to be written. Frames that come
then are for ``Mirror`` (links), ``Calls`` (messages and requests) or ``Lookups``
(names), ``Payloads`` opens what they bring, and ``Conduct`` sees how the peer behaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from backplane.lowlevel import Heard, OutpostEvent

from ._auth import PLAIN
from ._calls import Calls
from ._conduct import Conduct
from ._errors import (
    REFUSALS,
    AuthError,
    BridgeError,
    FrameError,
    NotConnectedError,
    RefusedError,
    VersionError,
)
from ._exports import Exports
from ._frames import AnyFrame, Close, Parser
from ._handshake import Handshake
from ._identity import Identity
from ._limits import Limits
from ._lookups import Lookups
from ._mirror import Mirror
from ._outbox import Outbox
from ._payloads import Payloads
from ._pulse import PROBE, Pulse
from ._setup import Setup
from ._states import TAKES, State


class Session:
    """One connection. It is for the node's loop alone, but for what goes through its outbox."""

    setup: Final[Setup]
    limits: Final[Limits]
    exports: Final[Exports]
    dialled: Final[bool]
    """Whether it was this node that made the connection."""
    source: Final[str]
    """Where it leads, for those who operate the node."""
    expect: Final[str | None]
    """The name that the peer must have, if it was said."""
    peer: Identity | None
    """Who the peer is, once it has said so."""
    driver: Any
    """What moves its bytes; it is for the node."""
    tried: Any
    """The node's, too."""
    state: State
    reason: BaseException | None
    """Why it is down."""
    finished: bool
    """Nothing more is to be written but what is in the outbox."""
    bytes_in: int
    frames_in: int
    pulse: Final[Pulse]
    outbox: Final[Outbox]
    mirror: Final[Mirror]
    payloads: Final[Payloads]
    calls: Final[Calls]
    lookups: Final[Lookups]
    conduct: Final[Conduct]
    handshake: Final[Handshake]

    def __init__(
        self,
        setup: Setup,
        *,
        dialled: bool,
        now: float,
        waiter: Any,
        binding: bytes = PLAIN,
        expect: str | None = None,
        source: str = "",
        certified: frozenset[str] | None = None,
    ) -> None:
        self.setup = setup
        self.limits = limits = setup.limits
        self.exports = exports = setup.exports
        self.dialled, self.source, self.expect = dialled, source, expect
        self.peer = self.driver = self.tried = self.reason = None
        self.state = State.HELLO
        self.finished = False
        self.bytes_in = self.frames_in = 0
        self.pulse = Pulse(now, setup.heartbeat, setup.dead_after, limits.handshake)
        self.outbox = box = Outbox(self, waiter)
        self.mirror = Mirror(
            setup.me, exports, limits, box.put, box.events, waiter, setup.tracebacks
        )
        self.mirror.session = self
        self.payloads = Payloads(self)
        self.calls = Calls(self)
        self.lookups = Lookups(self)
        self.conduct = Conduct(self, now)
        self._parser = Parser(limits.frame_before_auth)
        self.handshake = Handshake(self, binding, certified)
        if dialled:
            self.handshake.begin()

    # -- who it is ---------------------------------------------------------------------

    @property
    def peer_name(self) -> str:
        """The peer's name, once it has said one; before, what else is known of it."""
        return self.expect or self.source or "?" if self.peer is None else self.peer.name

    @property
    def whom(self) -> str:
        """The peer, for those who are told of it."""
        name = self.expect if self.peer is None else self.peer.name
        if name is None:
            return self.source or "a peer"
        return f"node {name!r} at {self.source}" if self.source else f"node {name!r}"

    @property
    def is_down(self) -> bool:
        """Whether it has ended."""
        return self.state is State.DOWN

    @property
    def is_up(self) -> bool:
        """Whether it is in use."""
        return self.state is State.UP

    @property
    def order(self) -> tuple[str, bytes]:
        """By which of two connections that cross is kept: the one that the smaller node dialled."""
        me, peer = self.setup.me, self.peer
        assert peer is not None
        dialler = me if self.dialled else peer
        return dialler.name, dialler.incarnation

    # -- bytes ---------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Take some bytes. Never raises because of them: they end the session at worst.

        Who calls this has to look into the outbox next: nobody is woken for what is said here.
        """
        if self.state is State.DOWN:
            return
        self.pulse.heard(now)
        self.bytes_in += len(data)
        outbox = self.outbox
        outbox.is_busy = outbox.is_woken = True
        try:
            self._handle_all(self._parser.feed(data))
            self.conduct.check(now)
        except (FrameError, AuthError, VersionError, RefusedError) as error:
            foreign = "" if self.frames_in else self._parser.language()
            self.down(FrameError(foreign) if foreign else error)
        finally:
            outbox.is_busy = False

    def eof(self, error: BaseException | None = None, why: str = "") -> None:
        """Nothing more comes."""
        why = why or _text(error)
        lost = self._loss(why) if self.state is State.UP else self.handshake.loss(why)
        lost.__cause__ = error
        self.down(lost)

    def _loss(self, why: str) -> NotConnectedError:
        """What it means that the stream has ended now, while it was in use."""
        name = self.peer_name
        closed = f"this node has closed the connection with node {name!r}"
        broke = f"the connection with node {name!r} broke: {why or 'it ended without a word'}"
        return NotConnectedError(name, "", closed if self.finished else broke)

    def gone(self, attempt: str) -> NotConnectedError:
        """The error of one who wants something of it, and it is gone."""
        name = self.peer_name
        reason = self.reason or f"this node has closed the connection with node {name!r}"
        return NotConnectedError(name, attempt, f"{reason}; connect again")

    def note(self, event: OutpostEvent) -> None:
        """What has happened at an outpost has come to its turn."""
        if type(event) is Heard and event.outpost is self.mirror.ear.outpost:
            self.calls.device_ended(event.message.sender, event.message.fault)
        self.mirror.note(event)

    # -- time ------------------------------------------------------------------------------

    def tick(self, now: float) -> float:
        """Do what is due; return when to look again."""
        if self.state is State.DOWN:
            return now + self.setup.heartbeat
        pulse = self.pulse
        doing = f"was {self.state.value} for too long"
        if self.finished:
            limit = f"Limits(closing={self.limits.closing:g})"
            doing = f"did not take its last bytes and hang up in time: {limit}"
        late = pulse.look(now, f"{self.whom} {doing}")
        if late is not None:
            self.down(TimeoutError(late))
            return now
        sign = pulse.sign(waits=self.outbox.waiting > 0)
        if sign is not None:
            self.outbox.put(sign, urgent=True)
        return pulse.due

    def probe(self, now: float) -> None:
        """Have the peer show within a second that it lives, or take the connection into use."""
        if self.state is State.DOWN:
            return
        question = self.pulse.probe(now)
        if question is not None:
            self.outbox.put(question, urgent=True)
        self.setup.on_hurry(self, now + PROBE)

    # -- its states ---------------------------------------------------------------------------

    def admit(self) -> None:
        """Let the peer stay, which has proved who it is; else tell it why not.

        Raises:
            RefusedError: The node does not want this connection.
        """
        self.mirror.peer = self.peer
        refusal = self.setup.admit(self)
        if refusal is not None:
            self.outbox.put(Close(refusal.code))
            raise refusal
        self._parser.limit = self.limits.frame

    def come_up(self) -> None:
        """Be in use from now on."""
        self.state = State.UP
        self.pulse.come_up()
        self.setup.on_up(self)
        self.setup.on_hurry(self, self.pulse.due)

    # -- frames ------------------------------------------------------------------------------

    def _handle_all(self, frames: Iterable[AnyFrame]) -> None:
        outbox, state = self.outbox, self.state
        events, takes = outbox.events, TAKES[state]
        for frame in frames:
            self.frames_in += 1
            if events:  # what was said before comes before what is answered
                outbox.pump()
            if self.state is not state:
                state = self.state
                takes = TAKES[state]
            handler = takes.get(type(frame))
            if handler is None:
                raise FrameError(f"a {type(frame).__name__} from a peer that is {state.value}")
            handler(self, frame)
            if self.state is State.DOWN:
                return

    def on_close(self, frame: Close) -> None:
        """The peer says that nothing more comes, and perhaps why."""
        refusal = REFUSALS.get(frame.reason)
        if refusal is not None:
            raise self.handshake.refusal(refusal)
        if self.state is State.UP and not self.finished:
            name = self.peer_name
            self.down(NotConnectedError(name, "", f"node {name!r} has closed the connection"))
        else:
            self.eof()

    # -- the end ----------------------------------------------------------------------------------

    def close(self, now: float) -> None:
        """End in good order: what was said before is written first."""
        if self.state is State.DOWN or self.finished:
            return
        self.outbox.pump()
        self.outbox.put(Close("bye"))
        self.finished = True
        until = now + self.limits.closing
        self.pulse.close(until)
        self.setup.on_hurry(self, until)
        self.outbox.room.close()

    def down(self, reason: BaseException) -> None:
        """End now. Each link across it fires, each request fails, and then the node hears."""
        if self.state is State.DOWN:
            return
        outbox = self.outbox
        outbox.end(last_word=isinstance(reason, RefusedError))
        self.state = State.DOWN
        self.handshake.forget()
        self.reason = reason
        self.finished = True
        name = self.peer_name
        self._parser = Parser(0)
        self.lookups.close()
        self.calls.close(name)
        self.mirror.close(name)
        outbox.close()
        self.setup.on_down(self)
        outbox.wake()


def _text(error: BaseException | None) -> str:
    """What a broken stream tells of itself; nothing if it has just ended."""
    cause = error if isinstance(error, OSError) else error and error.__cause__
    return str(cause) if isinstance(cause, OSError | BridgeError) else ""
