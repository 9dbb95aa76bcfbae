"""An address that is looked up at each use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final

from ._brief import brief
from ._errors import NoProcessError
from ._handles import Handle, Pid


class Directory(Protocol):
    """What a ``Via`` can lead through: a ``Registry``, or anything that tells who has a key."""

    @property
    def name(self) -> str:
        """What it is called in reports."""
        ...

    def whereis(self, key: Any, /) -> Pid | None:
        """Who has a key now; None if nobody has."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Via(Handle):
    """An address: whoever has a key when it is used. ``Registry.via`` makes them."""

    registry: Directory
    key: Any

    def whereis(self) -> Pid | None:
        """Who has the key now."""
        return self.registry.whereis(self.key)

    def resolve(self, attempt: str) -> Pid:
        """Who has the key now.

        Raises:
            NoProcessError: Nobody has.
        """
        pid = self.whereis()
        if pid is None:
            raise NoProcessError(self, attempt)
        return pid

    def send(self, message: object) -> bool:
        """Put a message into the mailbox of whoever has the key.

        Raises:
            NoProcessError: Nobody has.
            MailboxFullError: As for ``Pid.send``.
        """
        return self.resolve("send").send(message)

    def __repr__(self) -> str:
        return f"<Via {brief(self.key)} in {self.registry.name!r}>"
