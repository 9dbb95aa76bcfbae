"""Processes and servers as in Erlang/OTP, for those who want them.

To read: ``_reasons``; ``_mailbox``, ``_links`` and ``_process`` (a Device that has
them); ``_scope`` (where processes live); ``_from`` and ``_call`` (a request and its
one answer); ``_gen_server``, ``_returns``, ``_messages`` and ``_loop`` (what a server
is, and what it does); ``_start``, ``_server`` and ``_requests`` (how to start one and
talk to it). ``_registry``, ``_names``, ``_groups``, ``_timers`` and ``_alias`` stand
beside them; ``system`` is for looking into servers that run.
"""

from backplane.supervisor import Ignore

from . import system
from ._alias import Alias, alias, monitor_alias
from ._call import call
from ._call_errors import (
    CallError,
    CallingSelfError,
    CallTimeoutError,
    DeadlineError,
    ServerDownError,
)
from ._errors import (
    InitError,
    MailboxFullError,
    NoProcessError,
    NotInProcessError,
    ProcessError,
    ScopeError,
    StrayError,
)
from ._from import From
from ._gen_server import GenServer
from ._groups import GroupJoined, GroupLeft, Groups
from ._handles import Down, Exited, Pid, Ref, current_process
from ._ledger import AlreadyRegisteredError, NotRegisteredError
from ._mailbox import Match, Overflow
from ._messages import Cast, StopRequest, WrongServerError
from ._names import (
    NoRegistryError,
    Sendable,
    Target,
    await_name,
    current_registry,
    register,
    registered,
    send,
    unregister,
    wait_free,
    whereis,
)
from ._process import Process
from ._reasons import (
    KILL,
    KILLED,
    NOCONNECTION,
    NOPROC,
    NORMAL,
    SHUTDOWN,
    Exit,
    ExitReason,
    Reason,
    Stopped,
)
from ._registry import Registered, Registry, Unregistered
from ._requests import Requests, multi_call, receive_response, send_request, wait_response
from ._returns import (
    NO_REPLY,
    BadReturnError,
    NoReply,
    Reply,
    ReplyError,
    Stop,
    UnknownRequestError,
    reply_and,
)
from ._scope import Scope, current_scope, process_spec, spawn, spawn_link, spawn_monitor
from ._server import (
    NotServedError,
    Server,
    ServerRef,
    cast,
    cast_after,
    on_call,
    on_cast,
    reply,
    stop,
)
from ._start import Startup, child_spec, get_or_start, start, start_monitor, start_soon
from ._timers import Timer, exit_after, kill_after, send_after, send_every
from ._via import Via

__all__ = [
    "KILL",
    "KILLED",
    "NOCONNECTION",
    "NOPROC",
    "NORMAL",
    "NO_REPLY",
    "SHUTDOWN",
    "Alias",
    "AlreadyRegisteredError",
    "BadReturnError",
    "CallError",
    "CallTimeoutError",
    "CallingSelfError",
    "Cast",
    "DeadlineError",
    "Down",
    "Exit",
    "ExitReason",
    "Exited",
    "From",
    "GenServer",
    "GroupJoined",
    "GroupLeft",
    "Groups",
    "Ignore",
    "InitError",
    "MailboxFullError",
    "Match",
    "NoProcessError",
    "NoRegistryError",
    "NoReply",
    "NotInProcessError",
    "NotRegisteredError",
    "NotServedError",
    "Overflow",
    "Pid",
    "Process",
    "ProcessError",
    "Reason",
    "Ref",
    "Registered",
    "Registry",
    "Reply",
    "ReplyError",
    "Requests",
    "Scope",
    "ScopeError",
    "Sendable",
    "Server",
    "ServerDownError",
    "ServerRef",
    "Startup",
    "Stop",
    "StopRequest",
    "Stopped",
    "StrayError",
    "Target",
    "Timer",
    "UnknownRequestError",
    "Unregistered",
    "Via",
    "WrongServerError",
    "alias",
    "await_name",
    "call",
    "cast",
    "cast_after",
    "child_spec",
    "current_process",
    "current_registry",
    "current_scope",
    "exit_after",
    "get_or_start",
    "kill_after",
    "monitor_alias",
    "multi_call",
    "on_call",
    "on_cast",
    "process_spec",
    "receive_response",
    "register",
    "registered",
    "reply",
    "reply_and",
    "send",
    "send_after",
    "send_every",
    "send_request",
    "spawn",
    "spawn_link",
    "spawn_monitor",
    "start",
    "start_monitor",
    "start_soon",
    "stop",
    "system",
    "unregister",
    "wait_free",
    "wait_response",
    "whereis",
]
