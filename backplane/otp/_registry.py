"""Registries: processes under keys, one to a key or many."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, final

from ._handles import Handle, Pid, Ref, current_process
from ._ledger import AlreadyRegisteredError, Entry, Ledger, NotRegisteredError
from ._mailbox import lock
from ._process import Process
from ._tables import living, strict
from ._via import Via

if TYPE_CHECKING:  # the stub knows defaults, which the standard library's has not before 3.13
    from typing_extensions import TypeVar

    K = TypeVar("K", bound=Hashable, default=Any)
    V = TypeVar("V", default=Any)
else:
    from typing import TypeVar

    K = TypeVar("K", bound=Hashable)
    V = TypeVar("V")

_NO_VALUE: Any = None


@dataclass(frozen=True, slots=True)
class Registered:
    """To a registry's listeners: a process has registered a key."""

    registry: Registry[Any, Any]
    key: Any
    pid: Pid
    value: Any


@dataclass(frozen=True, slots=True)
class Unregistered:
    """To a registry's listeners: a process does not have that key any longer."""

    registry: Registry[Any, Any]
    key: Any
    pid: Pid


@final
class Registry(Handle, Generic[K, V]):
    """Processes under keys: one to a key, or with ``duplicate`` any number.

    A plain object without a process of its own, for any number of loops and
    threads. A process may have many keys, with a value for each. When it ends,
    they are free before anybody hears of it: whoever gets its ``Down`` can
    register them at once. Keys are compared strictly: 1 is neither 1.0 nor True,
    not inside a tuple either.

    ``with registry:`` makes it the place where the code in the block, and all
    tasks started there, look up plain string names. A ``Scope`` or a supervisor
    whose processes are to know them has to be opened inside the block.

    Args:
        name: What to call it in reports.
        duplicate: Whether a key may be registered many times, also by one process.

    Example:
        >>> import anyio
        >>> from backplane.otp import Scope, current_process
        >>> async def worker(registry):
        ...     registry.register("worker", "idle")
        ...     await current_process().receive()
        >>> async def main():
        ...     registry = Registry()
        ...     async with Scope() as scope:
        ...         pid = scope.spawn(worker, registry)
        ...         assert await registry.await_name("worker") == pid
        ...         print(registry.lookup("worker"))
        ...         registry.via("worker").send("stop")
        ...         await pid.wait()
        ...         print(registry.lookup("worker"))
        >>> anyio.run(main)
        [(<Pid ... worker>, 'idle')]
        []
    """

    __slots__ = ("__weakref__", "_ledger", "duplicate", "meta", "name")

    name: str
    """What it is called in reports."""
    duplicate: bool
    """Whether a key may be registered many times."""
    meta: dict[Any, Any]
    """Whatever its users want to keep with it."""

    def __init__(self, name: str = "registry", *, duplicate: bool = False) -> None:
        self.name = name
        self.duplicate = duplicate
        self.meta = {}
        self._ledger = Ledger(self._event)

    def register(self, key: K, value: V = _NO_VALUE, pid: Pid | None = None) -> None:
        """Register the calling process, or another of this program, under a key.

        In Elixir a process can register only itself. Here others may do it for
        it, such as the one that starts it; it has the key as if it had done so.

        Args:
            key: The key.
            value: What to keep with it; by default None.
            pid: The process; by default the calling one.

        Raises:
            AlreadyRegisteredError: A living process has the key, maybe this very one.
            NoProcessError: The process has ended.
            NotInProcessError: No process is calling, and none was given.
        """
        entry = Entry(key, living(pid, "register"), value)
        with lock:
            holders = [] if self.duplicate else self._ledger.entries(entry.slot)
            if holders:
                raise AlreadyRegisteredError(key, holders[0].process.pid)
            self._ledger.add(entry)

    def unregister(self, key: K, pid: Pid | None = None) -> int:
        """Give up a key of the calling process, or of another; how many entries those were."""
        return self.unregister_match(key, lambda _: True, pid)

    def unregister_match(self, key: K, where: Callable[[V], object], pid: Pid | None = None) -> int:
        """As ``unregister``, but only the entries with a value that a function accepts."""
        chosen = [entry for entry in self._under(key, pid) if where(entry.value)]
        return sum([self._ledger.remove(entry) for entry in chosen])

    def update_value(self, key: K, fn: Callable[[V], V]) -> tuple[V, V]:
        """Replace the value that the calling process keeps with a key; return new and old.

        Raises:
            NotRegisteredError: It does not have the key.
            ValueError: This registry keeps duplicate keys.
        """
        self._check_unique("update a value")
        me = current_process("update a value").pid
        entries = self._under(key, me)
        if not entries:
            raise NotRegisteredError(key, me)
        old = entries[0].value
        entries[0].value = new = fn(old)
        return new, old

    def whereis(self, key: K) -> Pid | None:
        """Who has a key; None if it is free.

        Raises:
            ValueError: This registry keeps duplicate keys.
        """
        self._check_unique("tell who has a key")
        entries = self._ledger.entries(strict(key))
        return entries[0].process.pid if entries else None

    def via(self, key: K) -> Via:
        """An address for whoever has the key: it is looked up at each use.

        Raises:
            ValueError: This registry keeps duplicate keys.
        """
        self._check_unique("address a key")
        return Via(self, key)

    def lookup(self, key: K) -> list[tuple[Pid, V]]:
        """Who has a key, with the values, the eldest entry first."""
        entries = self._ledger.entries(strict(key))
        return [(entry.process.pid, entry.value) for entry in entries]

    def match(self, key: K, where: Callable[[V], object]) -> list[tuple[Pid, V]]:
        """As ``lookup``, but only the entries with a value that a function accepts."""
        return [(pid, value) for pid, value in self.lookup(key) if where(value)]

    def keys(self, pid: Pid | None = None) -> list[K]:
        """The keys of a process, by default the calling one; one for each entry."""
        return [entry.key for entry in self._ledger.of(self._meant(pid))]

    def values(self, key: K, pid: Pid | None = None) -> list[V]:
        """What a process, by default the calling one, keeps with a key."""
        return [entry.value for entry in self._under(key, pid)]

    def select(self, where: Callable[[K, Pid, V], object] | None = None) -> list[tuple[K, Pid, V]]:
        """All entries, or those that a function accepts, as they are at this instant."""
        rows = [
            (entry.key, entry.process.pid, entry.value)
            for row in self._ledger.all()
            for entry in row
        ]
        return rows if where is None else [row for row in rows if where(*row)]

    def count(self, key: K) -> int:
        """How many entries there are with a key; ``len(registry)`` counts all."""
        return len(self._ledger.entries(strict(key)))

    def dispatch(self, key: K, fn: Callable[[list[tuple[Pid, V]]], object]) -> int:
        """Call a function with all that have a key, in the calling task; how many those are.

        It is not called if there is nobody.
        """
        entries = self.lookup(key)
        if entries:
            fn(entries)
        return len(entries)

    def subscribe(self, pid: Pid | None = None) -> list[tuple[K, Pid, V]]:
        """Have ``Registered`` and ``Unregistered`` come to a process, by default the calling one.

        One with a bounded mailbox that is full misses what does not fit.

        Returns:
            The entries that there are, taken in one step with the subscription.
        """
        process = living(pid, "subscribe")
        with lock:
            entries = self.select()
            if not self._ledger.ears(process):
                self._ledger.listen(process)
            return entries

    def unsubscribe(self, pid: Pid | None = None) -> None:
        """Undo ``subscribe``; what has come stays in the mailbox."""
        process = current_process("unsubscribe") if pid is None else pid._process
        for ref in self._ledger.ears(process):
            self._ledger.unlisten(process, ref)

    async def await_name(self, key: K, timeout: float | None = None) -> Pid:  # noqa: ASYNC109
        """Wait until somebody has a key, and return who.

        Raises:
            TimeoutError: Nobody has, after so many seconds.
            ValueError: This registry keeps duplicate keys.
        """
        self._check_unique("wait for who has a key")
        return await self._ledger.wait(strict(key), lambda: self.whereis(key), timeout)

    async def wait_free(self, key: K, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until nobody has a key.

        Raises:
            TimeoutError: Somebody has, after so many seconds.
        """
        await self._ledger.wait(strict(key), lambda: not self.count(key) or None, timeout)

    def __enter__(self) -> Self:
        self._check_unique("look up names")
        place.set((self, place.get()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        here = place.get()
        # Otherwise the block is closed from another context, which it has not changed.
        if here is not None and here[0] is self:
            place.set(here[1])

    def __len__(self) -> int:
        return sum(map(len, self._ledger.all()))

    def __bool__(self) -> bool:
        return True

    def __contains__(self, key: Hashable) -> bool:
        return bool(self._ledger.entries(strict(key)))

    def __repr__(self) -> str:
        return f"<Registry {self.name!r} {len(self)} entries>"

    def _under(self, key: K, pid: Pid | None) -> list[Entry]:
        return self._ledger.under(strict(key), self._meant(pid))

    def _meant(self, pid: Pid | None) -> Process:
        return current_process("ask for its keys") if pid is None else pid._process

    def _event(self, _: Ref, entry: Entry, added: bool) -> Registered | Unregistered:
        key, pid = entry.key, entry.process.pid
        return Registered(self, key, pid, entry.value) if added else Unregistered(self, key, pid)

    def _check_unique(self, attempt: str) -> None:
        if self.duplicate:
            raise ValueError(f"cannot {attempt}: registry {self.name!r} keeps duplicate keys")


place: ContextVar[tuple[Registry[Any, Any], Any] | None] = ContextVar(
    "backplane.registry", default=None
)
"""The registry in whose block the calling code is, and what this was outside of that."""
