"""Supervisors: children that are started in order, restarted when they fail, stopped in reverse.

The contract is OTP's. A child is any async function; a supervisor is a child
like any other. To read: ``_spec``, ``_budget`` and ``_strategy`` decide without
clock or loop; ``_child`` is one child, ``_desk``, ``_keeper`` and ``_engine`` are
the task that runs a supervisor, ``_static`` and ``_crowd`` its two kinds; ``_base``
is the block around it, and ``_supervisor`` and ``_dynamic`` what users see.
"""

from ._base import BaseSupervisor, Counts, alive
from ._child import ChildInfo, ChildState
from ._dynamic import DynamicSupervisor
from ._errors import (
    AlreadyPresentError,
    AlreadyStartedError,
    ChildNotFoundError,
    ChildRestartingError,
    ChildRunningError,
    Ignore,
    MaxChildrenError,
    MaxRestartsError,
    NotRunningError,
    NotStartedError,
    Permanent,
    SelfCallError,
    SpecError,
    StartError,
    StartTimeoutError,
    SupervisorError,
    UnresponsiveError,
    ZombieLimitError,
)
from ._events import (
    ChildExited,
    ChildKilled,
    ChildParked,
    ChildStarted,
    ChildStartFailed,
    ChildUnresponsive,
    ChildWaiting,
    Event,
    LoopBlocked,
    LoopEvent,
    LoopFreed,
    Subscriber,
    SupervisorGaveUp,
    log_event,
)
from ._partition import PartitionSupervisor
from ._signals import STOP_SIGNALS, run_service, stop_on_signals
from ._spec import (
    BRUTAL_KILL,
    AutoShutdown,
    Backoff,
    Budget,
    ChildSpec,
    Exhausted,
    Restart,
    Strategy,
)
from ._supervisor import Supervisor
from ._systemd import notify, ping_watchdog, watchdog_interval
from ._thread import in_thread
from ._tree import SupervisorInfo
from ._watch_loop import watch_loop

__all__ = [
    "BRUTAL_KILL",
    "STOP_SIGNALS",
    "AlreadyPresentError",
    "AlreadyStartedError",
    "AutoShutdown",
    "Backoff",
    "BaseSupervisor",
    "Budget",
    "ChildExited",
    "ChildInfo",
    "ChildKilled",
    "ChildNotFoundError",
    "ChildParked",
    "ChildRestartingError",
    "ChildRunningError",
    "ChildSpec",
    "ChildStartFailed",
    "ChildStarted",
    "ChildState",
    "ChildUnresponsive",
    "ChildWaiting",
    "Counts",
    "DynamicSupervisor",
    "Event",
    "Exhausted",
    "Ignore",
    "LoopBlocked",
    "LoopEvent",
    "LoopFreed",
    "MaxChildrenError",
    "MaxRestartsError",
    "NotRunningError",
    "NotStartedError",
    "PartitionSupervisor",
    "Permanent",
    "Restart",
    "SelfCallError",
    "SpecError",
    "StartError",
    "StartTimeoutError",
    "Strategy",
    "Subscriber",
    "Supervisor",
    "SupervisorError",
    "SupervisorGaveUp",
    "SupervisorInfo",
    "UnresponsiveError",
    "ZombieLimitError",
    "alive",
    "in_thread",
    "log_event",
    "notify",
    "ping_watchdog",
    "run_service",
    "stop_on_signals",
    "watch_loop",
    "watchdog_interval",
]
