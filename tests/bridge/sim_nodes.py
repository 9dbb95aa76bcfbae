"""What there is in the simulation: nodes with their Devices, and connections with their ends.

Session, Mirror, Calls, Exports, Peers, Reach and Device are the real ones. Beside them
stands what the naive model knows of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from backplane import Device, Fault, Line
from backplane.bridge._codec import Msgspec
from backplane.bridge._exports import QUIET, Exports, Right
from backplane.bridge._faults import pack_id
from backplane.bridge._frames import WireLine
from backplane.bridge._identity import Identity
from backplane.bridge._peers import Peers
from backplane.bridge._reach import Reach
from backplane.bridge._requests import Asked, Message, Request
from backplane.bridge._session import Session
from backplane.bridge._setup import Setup

if TYPE_CHECKING or not __package__:
    from sim_world import DEAD_AFTER, HEARTBEAT, LIMITS, UP, World
else:
    from .sim_world import DEAD_AFTER, HEARTBEAT, LIMITS, UP, World

CODEC: Final = Msgspec()
Got: TypeAlias = Callable[[Session, int], object]
"""Is told of each message that comes for a port: over which session, and its number."""


class Dev:
    """A Device, and what the model knows of it."""

    __slots__ = ("device", "ended", "fault", "marks", "name", "node", "rights", "serial", "wire")

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.name = name
        self.device: Device | None = Device(name)
        self.serial = self.device.id.serial
        self.ended = False
        self.fault: Fault | None = None
        self.marks: dict[Side, int] = {}
        """How many frames had been said on each connection when it ended."""
        self.wire: WireLine | None = None
        self.rights = Right.ALL

    def line(self) -> Line:
        """A Line to it, on its own node."""
        assert self.device is not None
        return self.device.line()

    @property
    def token(self) -> bytes:
        """What it is called on the wire."""
        assert self.wire is not None
        return self.wire.token

    def __repr__(self) -> str:
        return self.name


class Port:
    """What takes the messages and requests of a node's Devices."""

    __slots__ = ("_got", "requests")

    def __init__(self, got: Got) -> None:
        self._got = got
        self.requests: list[tuple[Request, int]] = []
        """Those that were not answered yet, and their numbers."""

    def tell(self, message: Message) -> None:
        self._got(message._session, message.open(int))

    def call(self, request: Request) -> None:
        number = request.open(int)
        self._got(request._session, number)
        self.requests.append((request, number))


class Then:
    """Something to be done when all that was said before is about to be written."""

    __slots__ = ("fn",)

    def __init__(self, fn: Callable[[], object]) -> None:
        self.fn = fn


class Side:
    """One end of a connection."""

    __slots__ = (
        "_note", "asks", "came", "closed", "finding", "intents", "linked", "node", "notified",
        "on_way", "other", "out", "pipe", "said", "sent", "session", "settled", "stalled",
    )  # fmt: skip

    def __init__(self, node: Node, pipe: Pipe, dialled: bool) -> None:
        self.node = node
        self.pipe = pipe
        self.other: Side = self
        self.session = Session(
            node.setup, dialled=dialled, now=node.world.now, waiter=QUIET, source=node.name
        )
        self.out = self.session.outbox._out
        """What waits to be written, but for the urgent frames."""
        self.on_way: deque[tuple[bytes, int]] = deque()
        """What was written here and has not come: the bytes, and how many frames they end."""
        self.said = 0
        """How many frames were taken here to be written, but for the urgent ones."""
        self.came = 0
        """How many of the other side's have come."""
        self.stalled = False
        """What is written here does not arrive for a while."""
        self.closed = 0
        """The last message before it was closed here."""
        self.settled = False
        """It is down, and what that means has been checked."""
        self.intents: deque[tuple[int, bool, Dev, Dev]] = deque()
        """What was done here with pairs of the other side, and how many frames were said then."""
        self.linked: set[tuple[Dev, Dev]] = set()
        self.notified: set[tuple[Dev, Dev]] = set()
        """The pairs of the other side that are linked from here."""
        self.sent: deque[tuple[int, Dev]] = deque()
        """The messages said here that have not come: their numbers, and to whom."""
        self.asks: dict[int, tuple[Asked, Dev]] = {}
        self.finding = False
        mirror: Any = self.session.mirror
        self._note, mirror.note = mirror.note, self.note

    def note(self, event: Any) -> None:
        """Something that has happened comes to its turn; what only the test wants to see, too."""
        if isinstance(event, Then):
            self.out.append(b"")
            event.fn()
        else:
            self._note(event)

    @property
    def is_up(self) -> bool:
        return self.session.state is UP

    def intend(self, link: bool, listener: Dev, speaker: Dev) -> None:
        """A pair over there is to be linked, or not, when all has come that was said before."""

        def then() -> None:
            self.intents.append((self.said + len(self.out) - 1, link, listener, speaker))

        self.session.outbox.events.append(Then(then))

    def mark(self, dev: Dev) -> None:
        """A Device ends now."""

        def then() -> None:
            dev.marks[self] = self.said + len(self.out) - 1

        self.session.outbox.events.append(Then(then))


class Pipe:
    """A connection."""

    __slots__ = ("a", "b", "broken", "harmed", "pair")

    def __init__(self, a: Node, b: Node) -> None:
        self.pair = frozenset({a.name, b.name})
        self.broken = False
        """Nothing arrives any longer."""
        self.harmed = False
        """The network has done something to it, or one of the nodes has died."""
        self.a = Side(a, self, True)
        self.b = Side(b, self, False)
        self.a.other, self.b.other = self.b, self.a

    @property
    def is_odd(self) -> bool:
        """Whether it is not simply up."""
        return self.broken or not self.a.is_up or not self.b.is_up or self.a.node.dead


class Node:
    """One life of a node."""

    named: Dev
    """What it exports under a name."""

    def __init__(self, world: World, name: str, life: int, got: Got) -> None:
        self.world = world
        self.name = name
        self.life = life
        self.dead = False
        self.lost: Session | None = None
        """The last of its connections that it has lost."""
        self.me = Identity(name, life.to_bytes(16, "big"))
        self.exports = Exports()
        self.peers = Peers(256)
        self.reach = Reach(self.me, self.exports, self.peers)
        self.port = Port(got)
        self.made = 0
        self.devs: list[Dev] = []
        self.sides: list[Side] = []
        self.lines: dict[Dev, Line] = {}
        self.setup = Setup(
            me=self.me,
            exports=self.exports,
            codec=CODEC,
            secrets=(b"a secret of sixteen bytes",),
            limits=LIMITS,
            heartbeat=HEARTBEAT,
            dead_after=DEAD_AFTER,
            admit=self.peers.admit,
            on_down=self.peers.forget,
            find_line=self.reach.find_line,
            wire_line=self.reach.wire_line,
        )

    def make(self) -> Dev:
        """Make a Device that can be reached."""
        self.made += 1
        dev = Dev(self, f"{self.name}{self.life}.{self.made}")
        line = dev.line()
        if self.world.rng.random() < 0.2:
            dev.rights = Right.MONITOR | Right.TALK
        export = self.exports.mint(line, dev.rights, self.port)
        me = self.me
        dev.wire = WireLine(
            export.token, me.name, me.incarnation, pack_id(line.id), dev.name, dev.rights.value
        )
        self.devs.append(dev)
        self.world.by_serial[dev.serial] = dev
        return dev
