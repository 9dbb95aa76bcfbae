"""Groups of processes: OTP's pg."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, final

from ._handles import Handle, Pid, Ref, current_process
from ._ledger import Entry, Ledger
from ._mailbox import lock
from ._tables import living, post, strict


@dataclass(frozen=True, slots=True)
class GroupJoined:
    """To those that monitor a group: processes have joined it."""

    ref: Ref
    group: Any
    pids: tuple[Pid, ...]


@dataclass(frozen=True, slots=True)
class GroupLeft:
    """To those that monitor a group: processes have left it once, or ended."""

    ref: Ref
    group: Any
    pids: tuple[Pid, ...]


@final
class Groups(Handle):
    """Groups of processes, by names of any kind: a scope, in the terms of OTP's pg.

    A plain object, for any number of loops and threads. A process may be in many
    groups, and in each many times over. When it ends, it has left all of them
    before anybody hears of it. A group is there as long as somebody is in it.
    Names of groups are compared strictly, like the keys of a ``Registry``.

    Args:
        name: What to call it in reports.

    Example:
        >>> import anyio
        >>> from backplane.otp import Scope, current_process
        >>> async def listener(groups):
        ...     print(await current_process().receive())
        >>> async def main():
        ...     groups = Groups()
        ...     async with Scope() as scope:
        ...         pid = scope.spawn(listener, groups)
        ...         groups.join("news", pid)
        ...         groups.publish("news", "hello")
        ...         await pid.wait()
        ...         print(groups.which_groups())
        >>> anyio.run(main)
        hello
        []
    """

    __slots__ = ("__weakref__", "_ledger", "name")

    name: str
    """What it is called in reports."""

    def __init__(self, name: str = "groups") -> None:
        self.name = name
        self._ledger = Ledger(_event)

    def join(self, group: Hashable, pid: Pid | None = None) -> None:
        """Let the calling process, or another, join a group, once more if it is in it.

        Raises:
            NoProcessError: The process has ended.
            NotInProcessError: No process is calling, and none was given.
        """
        self._ledger.add(Entry(group, living(pid, "join"), None))

    def leave(self, group: Hashable, pid: Pid | None = None) -> bool:
        """Take the calling process, or another, out of a group once; False if it is not in it."""
        process = current_process("leave") if pid is None else pid._process
        slot = strict(group)
        with lock:
            entries = self._ledger.under(slot, process)
            return bool(entries) and self._ledger.remove(entries[0])

    def members(self, group: Hashable) -> list[Pid]:
        """Who is in a group, each as many times as it has joined."""
        return [entry.process.pid for entry in self._ledger.entries(strict(group))]

    def local_members(self, group: Hashable) -> list[Pid]:
        """Those members that run in this program; a ``Cluster`` puts others in."""
        return [pid for pid in self.members(group) if pid._process.is_local]

    def which_groups(self) -> list[Hashable]:
        """The groups that somebody is in."""
        return [row[0].key for row in self._ledger.all()]

    def publish(self, group: Hashable, message: object) -> int:
        """Send a message to each process in a group, once; to how many.

        Left out, and not counted, is one with a bounded mailbox that is full, or on
        another node that is slow or lost. A message for other nodes is encoded before
        anybody gets it, once; that it has come there is not waited for.

        Raises:
            EncodeError: It cannot be sent to one that lives on another node. Nobody got it.
        """
        members = dict.fromkeys(entry.process for entry in self._ledger.entries(strict(group)))
        wrapped: dict[Any, Any] = {}
        posts = [(member, member.wrap(message, wrapped)) for member in members]
        return sum([post(member, each) for member, each in posts])

    def monitor(self, group: Hashable, pid: Pid | None = None) -> tuple[Ref, list[Pid]]:
        """Have ``GroupJoined`` and ``GroupLeft`` come to the calling process, or another.

        Monitors add up: each has a reference, and messages of its own. They end
        with the process. One with a bounded mailbox that is full misses what does
        not fit.

        Returns:
            The reference, and who is in the group, taken in one step: each change
            is either in that list or comes as a message.
        """
        process = living(pid, "monitor")
        slot = strict(group)
        with lock:
            members = self.members(group)
            return self._ledger.listen(process, slot), members

    def monitor_all(self, pid: Pid | None = None) -> tuple[Ref, dict[Hashable, list[Pid]]]:
        """As ``monitor``, for all groups, also those that are still to come.

        Groups whose names are equal but of different types, such as 1 and 1.0, are
        one in the dictionary that this returns.
        """
        process = living(pid, "monitor")
        members: dict[Hashable, list[Pid]] = {}
        with lock:
            for row in self._ledger.all():
                members.setdefault(row[0].key, []).extend(entry.process.pid for entry in row)
            return self._ledger.listen(process), members

    def demonitor(self, ref: Ref) -> bool:
        """End a monitor of the calling process; False if it was none.

        What of it has come and was not received is taken out of the mailbox.
        """
        process = current_process("demonitor")
        with lock:  # nothing more comes of it, and no sender drops what is looked at
            active = self._ledger.unlisten(process, ref)
            mailbox = process.mailbox
            for index in reversed(range(len(mailbox))):
                message = mailbox[index]
                if isinstance(message, GroupJoined | GroupLeft) and message.ref is ref:
                    del mailbox[index]
        return active

    def __repr__(self) -> str:
        return f"<Groups {self.name!r} {len(self._ledger.all())} groups>"


def _event(ref: Ref, entry: Entry, added: bool) -> GroupJoined | GroupLeft:
    return (GroupJoined if added else GroupLeft)(ref, entry.key, (entry.process.pid,))
