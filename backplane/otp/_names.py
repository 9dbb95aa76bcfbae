"""Plain names, as Erlang's ``register``: strings, in the registry of the block around.

``with registry:`` says which registry that is. One process has a name, and a
process that is given one here has no other one there, as in Erlang, so that
each is known to all by the same name. ``Registry.register`` has no such rule.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

from ._brief import brief
from ._errors import NoProcessError, ProcessError
from ._handles import Pid
from ._ledger import AlreadyRegisteredError
from ._mailbox import lock
from ._process import Process
from ._registry import Registry, place
from ._tables import living
from ._via import Via


@runtime_checkable
class Pointer(Protocol):
    """What leads to a process by another address, as a ``ServerRef`` does."""

    @property
    def target(self) -> Target:
        """That address."""
        ...

    def send(self, message: object, /) -> bool:
        """Send a message; False if nobody is there any longer."""
        ...


Target: TypeAlias = "Pid | Via | str | Pointer"
"""How a process can be addressed; by a name or ``Via``, it is looked up at each use."""


class Sendable(Protocol):
    """A ``Pid``, a ``Via``, an ``Alias``, or anything else that messages can be sent to."""

    def send(self, message: object, /) -> bool:
        """Send a message; False if nobody is there any longer."""
        ...


class NoRegistryError(ProcessError, LookupError):
    """A plain name was used outside of all ``with registry:`` blocks."""

    def __str__(self) -> str:
        return (
            "plain names are looked up in a registry, and none is around the calling code: "
            "open its scope or supervisor inside `with Registry():`"
        )


NoRegistryError.__module__ = "backplane.otp"


def current_registry() -> Registry[Any, Any]:
    """Where the calling code's plain names are looked up.

    Raises:
        NoRegistryError: Nowhere.
    """
    here = place.get()
    if here is None:
        raise NoRegistryError
    return here[0]


def register(name: str, pid: Pid | None = None) -> None:
    """Give the calling process, or another, a plain name.

    Raises:
        AlreadyRegisteredError: A living process has that name, or this one has a name.
        NoProcessError: The process has ended.
        NoRegistryError: No registry is around the calling code.
    """
    registry = current_registry()
    own = living(pid, "register").pid
    with lock:
        for held in registry.keys(own):
            if isinstance(held, str):
                raise AlreadyRegisteredError(name, own, held)
        registry.register(name, None, own)


def unregister(name: str) -> bool:
    """Take a plain name from whoever has it; False if nobody has."""
    registry = current_registry()
    with lock:
        pid = registry.whereis(name)
        return pid is not None and registry.unregister(name, pid) > 0


def whereis(name: str) -> Pid | None:
    """Who has a plain name; None if it is free."""
    return current_registry().whereis(name)


def registered() -> list[str]:
    """All plain names that somebody has."""
    return [key for key, _, _ in current_registry().select() if isinstance(key, str)]


def resolve(target: Target, attempt: str = "reach it") -> Process:
    """The process that a target means now; it may have ended if that is a ``Pid``.

    Raises:
        NoProcessError: Nobody has that name.
        NoRegistryError: It is a plain name, and no registry is around the calling code.
    """
    match target:
        case Pid():
            return target._process
        case Via():
            return target.resolve(attempt)._process
        case str():
            pid = current_registry().whereis(target)
            if pid is None:
                raise NoProcessError(target, attempt)
            return pid._process
        case Pointer(target=pointed):
            return resolve(pointed, attempt)
        case _:
            raise TypeError(f"a process is a Pid, a Via or a name, not {brief(target)}")


def send(target: Target | Sendable, message: object) -> bool:
    """Send a message, as Erlang's ``!``; False, and nothing else, if the process has ended.

    Raises:
        NoProcessError: It is a name or a ``Via``, and nobody has that.
        NoRegistryError: As for ``resolve``.
        MailboxFullError: As for ``Pid.send``.
    """
    if isinstance(target, str):
        return resolve(target, "send").deliver(message)
    return target.send(message)


async def await_name(name: str, timeout: float | None = None) -> Pid:  # noqa: ASYNC109
    """Wait until somebody has a plain name, and return who.

    Raises:
        TimeoutError: Nobody has, after so many seconds.
    """
    return await current_registry().await_name(name, timeout)


async def wait_free(name: str, timeout: float | None = None) -> None:  # noqa: ASYNC109
    """Wait until nobody has a plain name.

    Raises:
        TimeoutError: Somebody has, after so many seconds.
    """
    await current_registry().wait_free(name, timeout)
