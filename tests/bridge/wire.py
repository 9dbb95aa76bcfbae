"""Two nodes' sessions, joined by a wire that a test holds in its hands."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from backplane import Line
from backplane.bridge._codec import Msgspec
from backplane.bridge._errors import RefusedError
from backplane.bridge._exports import Exports, Right
from backplane.bridge._frames import WireLine
from backplane.bridge._identity import Identity
from backplane.bridge._limits import Limits
from backplane.bridge._session import Session
from backplane.bridge._setup import Setup
from backplane.bridge._states import State
from backplane.lowlevel import outpost_of


class Quiet:
    """Nobody is to be woken: the test looks by itself."""

    def wake(self) -> None:
        pass

    wake_soon = wake


class End:
    """One node, as far as sessions need it."""

    def __init__(self, name: str, **options: Any) -> None:
        self.me = Identity(name, os.urandom(16))
        self.exports = Exports()
        self.ups: list[Session] = []
        self.downs: list[Session] = []
        self.refuses: Callable[[Session], RefusedError | None] = lambda _: None
        options.setdefault("secrets", (b"a secret of sixteen bytes",))
        options.setdefault("limits", Limits())
        self.setup = Setup(
            me=self.me,
            exports=self.exports,
            codec=Msgspec(),
            admit=lambda session: self.refuses(session),
            on_up=self.ups.append,
            on_down=self.downs.append,
            wire_line=self.wire_line,
            find_line=self.find_line,
            **options,
        )

    def wire_line(self, line: Line) -> WireLine:
        outpost = outpost_of(line)
        if outpost is not None:
            wire: WireLine = outpost.key.line
            return wire
        export = self.exports.mint(line, Right.ALL)
        return self.session.mirror.pack(export)

    def find_line(self, wire: WireLine) -> Line:
        export = self.exports.get(wire.token)
        assert export is not None
        return export.line

    @property
    def session(self) -> Session:
        return self.ups[-1]


class Wire:
    """A connection between two ends. ``a`` has dialled. Bytes move when they are told to."""

    def __init__(self, a: End, b: End, now: float = 0.0, **of_dialler: Any) -> None:
        self.now = now
        self.a = Session(a.setup, dialled=True, now=now, waiter=Quiet(), **of_dialler)
        self.b = Session(b.setup, dialled=False, now=now, waiter=Quiet())
        self.cut = False

    def move(self, most: int = 1 << 20, split: int | None = None) -> bool:
        """Carry what each has to say, both ways, once; tell whether there was anything."""
        moved = False
        for here, there in ((self.a, self.b), (self.b, self.a)):
            data = here.outbox.take(most)
            here.pulse.wrote(self.now)
            moved = moved or bool(data)
            if not self.cut and data:
                step = split or len(data)
                for start in range(0, len(data), step):
                    there.receive(data[start : start + step], self.now)
            if here.finished and not here.outbox.waiting and not self.cut:
                there.eof()
        return moved

    def settle(self, split: int | None = None) -> None:
        """Until nobody has anything to say."""
        for _ in range(1000):
            if not self.move(split=split):
                return
        raise AssertionError("they never stop")

    def lose(self) -> None:
        """Cut it; both notice."""
        self.cut = True
        self.a.eof()
        self.b.eof()


def pair(**options: Any) -> tuple[End, End, Wire]:
    """Two nodes with a connection that is up."""
    a, b = End("a", **options), End("b", **options)
    wire = Wire(a, b)
    wire.settle()
    assert wire.a.state is wire.b.state is State.UP, (wire.a.reason, wire.b.reason)
    return a, b, wire


def reach(here: End, there: End, wire: Wire, line: Line, rights: Right = Right.ALL) -> Line:
    """A Line of ``here`` to a Device of ``there``."""
    name = f"{line.id.serial}-{rights.value}"
    if there.exports.find(name, here.me.name) is None:
        there.exports.name(name, line, ["*"], rights, None)
    found: list[WireLine | None] = []
    here.session.lookups.find(name, found.append)
    wire.settle()
    assert found[0] is not None
    return here.session.mirror.open(found[0])
