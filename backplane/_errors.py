"""The exceptions of the core: an ``Error`` was misuse or lateness, a ``Crash`` a message.

They keep their facts as attributes, and make their text from them, so that
they can be matched, pickled and sent.
"""

from __future__ import annotations

from ._messages import Cascaded, DeviceID, Fault, RootFault


class LinkError(Exception):
    """What was asked for cannot be had of a Device, most often as it has already disconnected.

    Nothing was done: no link was made or changed, no message was lost.
    """

    def __init__(self, device: DeviceID, attempt: str) -> None:
        """Say that ``attempt`` failed because of ``device``; unless more is said, it had ended."""
        super().__init__(device, attempt)
        self.device = device
        """The Device that is in the way."""
        self.attempt = attempt
        """What was tried, in words."""

    def __str__(self) -> str:
        return f"cannot {self.attempt}: {self.device!r} has already disconnected"


class DeviceDownError(LinkError):
    """The Device on which you called has already disconnected."""


class LinkDownError(LinkError):
    """The Device at the other end has already disconnected."""


class Crash(Exception):
    """A message ended the work of ``manage``, ``part_manage`` or ``managed``."""


class PowerOffCrash(Crash):
    """The work was asked to shut down, and did. The Device ended without a fault."""

    def __init__(self, sender: DeviceID | None) -> None:
        """Say that ``sender`` asked for the end (``None``: no Device did)."""
        super().__init__(sender)
        self.sender = sender
        """Who asked."""

    def __str__(self) -> str:
        if self.sender is None:
            return "shut down on request"
        return f"shut down on request of {self.sender!r}"


class CascadeCrash(Crash):
    """A Device that the work depended on ended with a fault."""

    def __init__(self, sender: DeviceID, fault: Fault) -> None:
        """Say that ``sender`` ended with ``fault``, and stopped this work."""
        super().__init__(sender, fault)
        self.sender = sender
        """The Device whose end stopped the work."""
        self.fault = fault
        """Why that Device ended."""

    @property
    def root(self) -> RootFault:
        """The first cause of all, however long the cascade was."""
        return self.fault.root if isinstance(self.fault, Cascaded) else self.fault

    def __str__(self) -> str:
        return f"{self.sender!r} ended with {self.fault!r}"


def busy_error(device: object, attempt: str) -> Exception:
    """An ``anyio.BusyResourceError``: two want the messages of one Device."""
    from anyio import BusyResourceError  # slow to import, and seldom needed

    error = BusyResourceError(attempt)
    error.args = (
        f"cannot {attempt}: <Device {device!r}> is in use, a task already receives from it, "
        "watches with it or works under it; give each task a Device of its own",
    )
    return error


# Tracebacks show an exception's module: users should see the name they import.
for _error in (LinkError, DeviceDownError, LinkDownError, Crash, PowerOffCrash, CascadeCrash):
    _error.__module__ = "backplane"
