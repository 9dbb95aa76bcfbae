"""Erlang's reliability for Python: be told when something you depend on ends, and why.

A ``Device`` is a presence in a mesh, a ``Line`` a handle to one. Links tell one
Device when another ends, and why; ``Device.manage`` ties a piece of work to its
Device, so that a failed dependency stops it and its own failure is announced.

To read the core, take its modules from the bottom up: ``_messages`` (what is
said), ``_errors``, ``_plugboard`` (who is told: all shared state), ``_loop``
(waking and cancelling: all that depends on asyncio or trio), ``_line``,
``_work`` (what a message stops), ``_device``.
"""

from ._device import Device, current_device
from ._errors import (
    CascadeCrash,
    Crash,
    DeviceDownError,
    LinkDownError,
    LinkError,
    PowerOffCrash,
)
from ._line import Line
from ._messages import (
    Cancelled,
    Cascaded,
    Completed,
    DeviceID,
    Disconnected,
    Dropped,
    Failed,
    Fault,
    Killed,
    LinkMode,
    Message,
    Messaged,
    NoConnection,
    Shutdown,
    Watched,
)

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "CascadeCrash",
    "Cascaded",
    "Completed",
    "Crash",
    "Device",
    "DeviceDownError",
    "DeviceID",
    "Disconnected",
    "Dropped",
    "Failed",
    "Fault",
    "Killed",
    "Line",
    "LinkDownError",
    "LinkError",
    "LinkMode",
    "Message",
    "Messaged",
    "NoConnection",
    "PowerOffCrash",
    "Shutdown",
    "Watched",
    "current_device",
]
