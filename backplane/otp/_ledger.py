"""What a registry or a scope of groups keeps: entries by key and by process, and who listens."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

from backplane.lowlevel import Parking, checkpoint, clock, new_parking

from ._brief import brief
from ._errors import ProcessError
from ._handles import Pid, Ref
from ._mailbox import ALIVE, lock
from ._process import Process
from ._tables import post, put, strict, take

T = TypeVar("T")


async def until(
    look: Callable[[], T | None],
    parking: Parking,
    timeout: float | None,  # noqa: ASYNC109
) -> T:
    """Sleep until a function returns not None; it is asked whenever the parking is woken.

    Raises:
        TimeoutError: It did not in time.
    """
    await checkpoint()
    now = clock()
    deadline = None if timeout is None else now() + timeout
    while (found := look()) is None:
        if deadline is None:
            await parking.park()
        elif now() < deadline:
            await parking.park_until(deadline)
        else:
            raise TimeoutError
    return found


class AlreadyRegisteredError(ProcessError):
    """The key is another's, or the process has a name already. Nothing was registered."""

    def __init__(self, key: object, pid: Pid, name: str | None = None) -> None:
        super().__init__(key, pid, name)
        self.key = key
        self.pid = pid
        self.name = name

    def __str__(self) -> str:
        has = "has it" if self.name is None else f"has the name {brief(self.name)}"
        return f"cannot register {brief(self.key)}: {self.pid!r} {has} already"


class NotRegisteredError(ProcessError, LookupError):
    """The calling process does not have that key. Nothing was changed."""

    def __init__(self, key: object, pid: Pid) -> None:
        super().__init__(key, pid)
        self.key = key
        self.pid = pid

    def __str__(self) -> str:
        return f"cannot update {brief(self.key)}: {self.pid!r} has not registered it"


AlreadyRegisteredError.__module__ = NotRegisteredError.__module__ = "backplane.otp"


ANY_KEY: Final = object()
"""In place of a key, for those who listen to the changes of all."""


class Entry:
    """A process under a key."""

    __slots__ = ("key", "process", "slot", "value")

    def __init__(self, key: Any, process: Process, value: Any) -> None:
        self.key = key
        self.slot = strict(key)
        self.process = process
        self.value = value


class _Holder:
    """A process's part of a ledger, which goes before anybody hears of its end."""

    __slots__ = ("_ledger", "ears", "entries", "process")

    def __init__(self, ledger: Ledger, process: Process) -> None:
        self._ledger = ledger
        self.process = process
        self.entries: dict[Entry, None] = {}
        self.ears: dict[Ref, Hashable] = {}

    def release(self) -> None:
        with lock:
            for ref in list(self.ears):
                self._ledger.unlisten(self.process, ref)
            for entry in list(self.entries):
                self._ledger.remove(entry)


class Ledger:
    """The tables of one registry. All methods may be called from any thread.

    Args:
        event: Makes the message that tells a listener, by its reference, that an
            entry has been added (True) or removed.
    """

    __slots__ = ("_ears", "_event", "_holders", "_rows", "_waiters")

    def __init__(self, event: Callable[[Ref, Entry, bool], object]) -> None:
        self._event = event
        self._rows: dict[Hashable, dict[Entry, None]] = {}
        self._ears: dict[Hashable, dict[Ref, Process]] = {}
        self._waiters: dict[Hashable, dict[Parking, None]] = {}
        self._holders: dict[Process, _Holder] = {}

    def add(self, entry: Entry) -> None:
        """Take an entry up, and tell."""
        with lock:
            self._holder(entry.process).entries[entry] = None
            put(self._rows, entry.slot, entry, None)
            self._tell(entry, True)

    def remove(self, entry: Entry) -> bool:
        """Take an entry out, and tell; False if it is out already."""
        with lock:
            if entry not in self._rows.get(entry.slot, ()):
                return False
            take(self._rows, entry.slot, entry)
            holder = self._holder(entry.process)
            holder.entries.pop(entry, None)
            self._forget_idle(holder)
            self._tell(entry, False)
            return True

    def entries(self, slot: Hashable) -> list[Entry]:
        """The entries with a key, the eldest first."""
        with lock:
            alive: list[Entry] = []
            for entry in list(self._rows.get(slot, ())):
                if entry.process.reason is ALIVE:
                    alive.append(entry)
                else:  # registered by another thread while it ended: nobody else takes it out
                    self.remove(entry)
            return alive

    def all(self) -> list[list[Entry]]:
        """All entries at this instant, key by key."""
        with lock:
            rows = [self.entries(slot) for slot in list(self._rows)]
            return [row for row in rows if row]

    def of(self, process: Process) -> list[Entry]:
        """The entries of a process, the eldest first."""
        with lock:
            holder = self._holders.get(process)
            return [] if holder is None else list(holder.entries)

    def under(self, slot: Hashable, process: Process) -> list[Entry]:
        """The entries of a process with a key, the eldest first."""
        with lock:
            holder = self._holders.get(process)
            mine = {} if holder is None else holder.entries
            row = self._rows.get(slot, {})
            few = list(mine if len(mine) < len(row) else row)  # either may be very many
            return [entry for entry in few if entry.slot == slot and entry.process is process]

    def listen(self, process: Process, slot: Hashable = ANY_KEY) -> Ref:
        """Let a process hear of each change of a key, or of all."""
        process.check_local()
        ref = Ref()
        with lock:
            self._holder(process).ears[ref] = slot
            put(self._ears, slot, ref, process)
        return ref

    def unlisten(self, process: Process, ref: Ref) -> bool:
        """Undo ``listen``; whether there was anything to undo."""
        with lock:
            holder = self._holders.get(process)
            if holder is None or ref not in holder.ears:
                return False
            take(self._ears, holder.ears.pop(ref), ref)
            self._forget_idle(holder)
            return True

    def ears(self, process: Process) -> list[Ref]:
        """What ``listen`` returned for a process, and is not undone."""
        with lock:
            holder = self._holders.get(process)
            return [] if holder is None else list(holder.ears)

    async def wait(
        self,
        slot: Hashable,
        look: Callable[[], T | None],
        timeout: float | None,  # noqa: ASYNC109
    ) -> T:
        """Sleep until a function returns not None; it is asked after each change of a key."""
        parking = new_parking()
        with lock:
            put(self._waiters, slot, parking, None)
        try:
            return await until(look, parking, timeout)
        finally:
            with lock:
                take(self._waiters, slot, parking)

    def _holder(self, process: Process) -> _Holder:
        holder = self._holders.get(process)
        if holder is None:
            holder = self._holders[process] = _Holder(self, process)
            process.at_end(holder.release)
        return holder

    def _forget_idle(self, holder: _Holder) -> None:
        if not holder.entries and not holder.ears:
            self._holders.pop(holder.process, None)
            holder.process.not_at_end(holder.release)

    def _tell(self, entry: Entry, added: bool) -> None:
        for slot in entry.slot, ANY_KEY:
            for ref, process in list(self._ears.get(slot, {}).items()):
                post(process, self._event(ref, entry, added))
        for parking in list(self._waiters.get(entry.slot, ())):
            parking.wake()
