"""Clusters on other nodes: what each has said of its names and groups, and what it is told.

All that is said is a list, and what a cluster says is only about its own processes:

======== ============================ ==================================================
kind     then                         means
======== ============================ ==================================================
w        pids, line                   announce to that cluster why those processes end
D        pid, reason                  it ends, and why: said just before it has
hello                                 what I have said before is void; here is all I have:
names    pairs of name and pid        these have names
members  pairs of group and pid       these are in groups, once for each time
said                                  that was all; from now on I tell the changes
free     name                         nobody has that name any longer
left     group, DeviceID              that one has left a group once
======== ============================ ==================================================

A connection keeps the order, and when it is lost, all is void. So there is nothing
to be compared or repaired: who is connected has what the other had some time ago.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, final

from backplane import DeviceID, Line
from backplane.bridge import BridgeError, BusyError, EncodeError, PayloadError, tell, wait_tell
from backplane.lowlevel import checkpoint, new_parking

from ._groups import Groups
from ._handles import Pid
from ._port import lives_on

LONGEST: Final = 255
"""So many characters has a name, or a group's, that others are told of."""
_MOST: Final = 100_000
"""So many names, and so many members, one node may tell of."""
_AT_ONCE: Final = 50
"""So many pairs are told in one message."""

_logger = logging.getLogger("backplane.otp")


@final
class Neighbour:
    """The cluster on one other node, as long as there is a connection with that."""

    __slots__ = (
        "_here", "_members", "_parking", "_unsaid", "groups", "line", "lost", "met", "name",
        "names", "reached", "said",
    )  # fmt: skip

    name: str
    """The node's."""
    line: Line | None
    """The cluster there, once it is found."""
    names: dict[str, Pid]
    """Who has which name there."""
    met: bool
    """It has been told all that there is here, and is told each change."""
    reached: bool
    """Its processes that were known when it was found have been reached again."""
    said: bool
    """It has said all that it has."""
    lost: bool

    def __init__(self, here: str, name: str, groups: Groups) -> None:
        self._here = here
        self.name = name
        self.groups = groups
        self.line = None
        self.names = {}
        self.met = self.reached = self.said = self.lost = False
        self._members: dict[tuple[str, DeviceID], list[Pid]] = {}
        """Those that it has put into groups: as often as they are in one."""
        self._unsaid: deque[list[Any]] = deque()
        self._parking = new_parking()

    # -- what it says ----------------------------------------------------------------------

    def hear(self, parts: list[Any]) -> None:
        """Take what it has said.

        Raises:
            PayloadError: No cluster says such a thing.
        """
        match parts:
            case ["hello"]:
                self._forget()
            case ["names", list(pairs)]:
                for key, pid in map(_pair, pairs):
                    self._check(key, pid, len(self.names))
                    self.names[key] = pid
            case ["members", list(pairs)]:
                for group, pid in map(_pair, pairs):
                    self._check(group, pid, len(self._members))
                    self._join(group, pid)
            case ["said"]:
                self.said = True
            case ["free", str(key)]:
                self.names.pop(key, None)
            case ["left", str(group), DeviceID() as id]:
                self._leave(group, id)
            case _:
                raise PayloadError("something that no cluster says")

    def _check(self, name: object, pid: object, there: int) -> None:
        if not isinstance(name, str) or not isinstance(pid, Pid) or len(name) > LONGEST:
            raise PayloadError("a name or a group that nobody can be told of")
        if not lives_on(pid, self.name):
            raise PayloadError(f"{pid!r}, which does not live there")
        if there >= _MOST:
            raise PayloadError(f"more than {_MOST} names or members")

    def _join(self, group: str, pid: Pid) -> None:
        if pid.alive:  # else it has ended since, and that it has left is said next
            self._members.setdefault((group, pid.id), []).append(pid)
            self.groups.join(group, pid)

    def _leave(self, group: str, id: DeviceID) -> None:
        pids = self._members.get((group, id))
        if pids:
            self.groups.leave(group, pids.pop())
            if not pids:
                del self._members[group, id]

    def _forget(self) -> None:
        """All that it has said is void."""
        self.said = False
        self.names.clear()
        while self._members:
            (group, _), pids = self._members.popitem()
            for pid in pids:
                self.groups.leave(group, pid)

    def lose(self) -> None:
        """It is gone."""
        self.lost = True
        self._forget()
        self._unsaid.clear()
        self._parking.wake()

    # -- what it is told -------------------------------------------------------------------

    def greet(self, names: Iterable[tuple[Any, Pid]], members: Iterable[tuple[Any, Pid]]) -> None:
        """Tell it all that there is; from now on it is told the changes."""
        self.met = True
        self.tell(["hello"])
        for kind, pairs in ("names", list(names)), ("members", list(members)):
            for start in range(0, len(pairs), _AT_ONCE):
                self.tell([kind, pairs[start : start + _AT_ONCE]])
        self.tell(["said"])

    def tell(self, message: list[Any]) -> None:
        """Have something said to it, after what was said before."""
        if self.met and not self.lost:
            self._unsaid.append(message)
            self._parking.wake()

    def urge(self, message: list[Any]) -> None:
        """Say something at once; but if its node is slow, after what was to be said before."""
        assert self.line is not None
        try:
            tell(self.line, message)
        except BusyError:
            self._unsaid.append(message)
            self._parking.wake()
        except BridgeError:
            pass  # as below

    async def speak(self) -> None:
        """Say what is to be said, as fast as its node takes it, until it is gone."""
        while not self.lost:
            while self._unsaid:
                await self.say(self._unsaid.popleft())
            await self._parking.park()

    async def say(self, message: list[Any]) -> None:
        """Say something, as soon as its node takes it."""
        assert self.line is not None
        await checkpoint()
        try:
            await wait_tell(self.line, message)
        except EncodeError as error:
            match message:
                case [kind, [_, _, *_] as parts, *rest]:  # one by one it may not be too long
                    self._unsaid.extendleft([kind, [part], *rest] for part in reversed(parts))
                    self._parking.wake()
                case _:
                    _logger.warning("node %r: %r was not told: %s", self._here, self.name, error)
        except BridgeError:
            pass  # the connection is gone, and this with it


def _pair(pair: Any) -> tuple[Any, Any]:
    match pair:
        case [name, thing]:
            return name, thing
        case _:
            raise PayloadError("no pair")
