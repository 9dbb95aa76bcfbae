"""What all parts of the simulation share: chance, the clock, and what there is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from backplane import Failed, Fault
from backplane.bridge._limits import Limits
from backplane.bridge._session import Session
from backplane.bridge._states import State
from backplane.lowlevel import outpost_of

if TYPE_CHECKING:
    from sim_nodes import Dev, Node, Pipe, Side

HEARTBEAT: Final = 1.0
DEAD_AFTER: Final = 3.0
LIMITS: Final = Limits(handshake=5.0)
MARK: Final = 1 << 40
"""The serial number of a Device that there is not: from here on it is that of a message."""
UP: Final = State.UP
DOWN: Final = State.DOWN


class BugError(AssertionError):
    """Something happened that must not."""


def same(fault: Fault | None, other: Fault | None) -> bool:
    """Whether one is what the other becomes on its way."""
    if isinstance(fault, Failed) and isinstance(other, Failed):
        return str(fault.exception) == str(other.exception)
    return fault == other


class World:
    """Everything that happens in it follows from its chance, of which all parts draw in turn."""

    def __init__(self, rng: random.Random, loud: bool) -> None:
        self.rng = rng
        self.loud = loud
        self.now = 0.0
        self.nodes: list[Node] = []
        """Those that live."""
        self.pipes: list[Pipe] = []
        """Those that are not down at both ends."""
        self.by_serial: dict[int, Dev] = {}
        self.by_session: dict[Session, Side] = {}
        self.last_message = MARK
        """The number of the message or request that was said last."""
        self.dialled: set[frozenset[str]] = set()
        """Pairs of nodes of which one has dialled the other."""
        self.spoilt: set[frozenset[str]] = set()
        """Pairs of nodes that may have no connection: it was closed, or harmed."""
        self.bugs: list[BugError] = []
        """What was found in the midst of a session's work, which logs what users' code raises."""

    def say(self, *words: object) -> None:
        """Tell a step, if a life is told."""
        if self.loud:
            print(f"{self.now:6.2f}", *words)  # noqa: T201

    @contextmanager
    def within(self) -> Iterator[None]:
        """Code of users', which a session calls: take note of what is found there."""
        try:
            yield
        except BugError as bug:
            self.bugs.append(bug)
            raise

    def raise_bugs(self) -> None:
        """Raise what was found there."""
        if self.bugs:
            raise self.bugs[0]

    def next_message(self) -> int:
        """The number of a message or request that is about to be said."""
        self.last_message += 1
        return self.last_message

    def up(self, node: Node) -> Side | None:
        """One of a node's connections."""
        sides = [side for side in node.sides if side.is_up]
        return self.rng.choice(sides) if sides else None

    def ours(self, node: Node) -> Dev:
        """One of a node's Devices."""
        return self.rng.choice(node.devs) if node.devs else node.make()

    def theirs(self, node: Node) -> Dev | None:
        """One to which it has a Line."""
        lines = node.lines
        return self.rng.choice(list(lines)) if lines else None

    def side_to(self, node: Node, dev: Dev) -> Side | None:
        """The connection that its Line leads through."""
        outpost = outpost_of(node.lines[dev])
        assert outpost is not None
        return self.by_session.get(outpost.key.session)
