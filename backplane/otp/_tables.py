"""What registries, groups, timers and aliases share: one lock, strict keys, tables of tables."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

from ._errors import MailboxFullError, NoProcessError
from ._handles import Pid, current_process
from ._mailbox import ALIVE
from ._process import Process

Item = TypeVar("Item", bound=Hashable)
Value = TypeVar("Value")


def strict(key: Hashable) -> Hashable:
    """What stands for a key in a table: equal for equal keys of the same type only."""
    if type(key) is str:
        return key
    if type(key) is tuple:
        return tuple, tuple(map(strict, key))
    return type(key), key


def put(table: dict[Hashable, dict[Item, Value]], slot: Hashable, item: Item, value: Value) -> None:
    """Do ``table[slot][item] = value``. Hold the lock."""
    # Again if a finalizer has taken the last item out of the row, and the row with it,
    # between the two steps.
    while item not in table.get(slot, ()):
        table.setdefault(slot, {})[item] = value


def take(table: dict[Hashable, dict[Item, Value]], slot: Hashable, item: Item) -> None:
    """Undo ``put``; an empty row vanishes. Hold the lock."""
    row = table.get(slot, {})
    row.pop(item, None)
    if not row:
        table.pop(slot, None)


def living(pid: Pid | None, attempt: str) -> Process:
    """The process that is meant: by default the calling one.

    Raises:
        NotInProcessError: None is meant, and none is calling.
        NoProcessError: It has ended.
    """
    if pid is None:
        return current_process(attempt)
    if pid._process.reason is not ALIVE:
        raise NoProcessError(pid, attempt)
    return pid._process


def post(process: Process, message: object) -> bool:
    """Put a message into a mailbox, unless it is full: nobody here could do anything about it."""
    try:
        return process.deliver(message)
    except MailboxFullError:
        return False
