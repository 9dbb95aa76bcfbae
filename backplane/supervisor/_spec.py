"""What a supervisor is told: child specifications and their policies.

Pure values, checked when they are made: a bad one never reaches a running
supervisor. The words and defaults are OTP's and Elixir's.
"""

from __future__ import annotations

import enum
import inspect
import math
import random
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Final, Literal, Self, TypeAlias

from ._errors import SpecError


class Strategy(enum.Enum):
    """Who is stopped and started again when a child has to be restarted."""

    ONE_FOR_ONE = "one_for_one"
    """That child alone."""
    ONE_FOR_ALL = "one_for_all"
    """All children: stopped in reverse order, then started in order."""
    REST_FOR_ONE = "rest_for_one"
    """That child and those that were started after it."""


class Restart(enum.Enum):
    """When a child that has ended is started again."""

    PERMANENT = "permanent"
    """Always."""
    TRANSIENT = "transient"
    """Unless it ended well: it returned, or was shut down on request."""
    TEMPORARY = "temporary"
    """Never; and its specification is forgotten as soon as it ends."""


class AutoShutdown(enum.Enum):
    """Whether a supervisor ends when its significant children do."""

    NEVER = "never"
    ANY_SIGNIFICANT = "any_significant"
    """With the first significant child that ends by itself and is not restarted."""
    ALL_SIGNIFICANT = "all_significant"
    """With the last one."""


class Exhausted(enum.Enum):
    """What happens when a restart would exceed a budget."""

    ESCALATE = "escalate"
    """The supervisor stops all its children and fails with ``MaxRestartsError``."""
    PARK = "park"
    """The child stays down, in the state ``PARKED``, until ``restart_child``.

    If it was the budget of all children that it has spent, that one starts anew.
    """
    STOP = "stop"
    """The supervisor stops all its children and ends well."""


class BrutalKill(enum.Enum):
    """The type of ``BRUTAL_KILL``."""

    BRUTAL_KILL = "brutal_kill"


BRUTAL_KILL: Final = BrutalKill.BRUTAL_KILL
"""As a child's ``shutdown``: kill it at once, without asking."""

Grace: TypeAlias = float | Literal[BrutalKill.BRUTAL_KILL]
"""How long a child may take to stop: seconds, ``math.inf``, or ``BRUTAL_KILL``."""

DEFAULT_GRACE: Final = 5.0
"""Seconds that a worker may take to stop (OTP's default)."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a restart. All times in seconds.

    The n-th wait in a row is ``initial * factor ** (n - 1)``, at most
    ``maximum``, of which a random part, up to the share ``jitter``, is taken
    off, so that children which failed together do not come back together. A
    child that has run for ``reset_after`` starts again at ``initial``.
    """

    initial: float = 0.1
    factor: float = 2.0
    maximum: float = 30.0
    jitter: float = 1.0
    """1.0 is "full jitter": anything between nothing and the whole wait."""
    reset_after: float = 60.0

    def __post_init__(self) -> None:
        check_number("initial", self.initial, 0)
        check_number("factor", self.factor, 1)
        check_number("maximum", self.maximum, self.initial)
        check_number("jitter", self.jitter, 0, 1)
        check_number("reset_after", self.reset_after, 0, allow_inf=True)

    def delay(self, attempt: int, share: float | None = None) -> float:
        """The wait before restart number ``attempt`` (from 1) in a row, in seconds.

        Args:
            attempt: Counts the restarts since the child last ran for ``reset_after``.
            share: How much of the jitter to take off, 0 to 1; random by default.
        """
        # Beyond this the power would overflow, and is far above any maximum.
        exponent = min(attempt - 1, 1000 / math.log2(self.factor) if self.factor > 1 else 0)
        whole = min(self.maximum, self.initial * self.factor**exponent)
        return whole * (1 - self.jitter * (random.random() if share is None else share))


@dataclass(frozen=True, slots=True)
class Budget:
    """How many restarts are allowed within how many seconds."""

    max_restarts: int = 3
    max_seconds: float = 5.0

    def __post_init__(self) -> None:
        check_count("max_restarts", self.max_restarts)
        check_number("max_seconds", self.max_seconds, 0, allow_inf=True)
        if self.max_seconds == 0:
            raise SpecError("max_seconds must be above 0: no restart is ever within 0 seconds")


_NONE: Final[Mapping[str, Any]] = {}


_KINDS: Final[tuple[tuple[str, type], ...]] = (
    ("restart", Restart),
    ("is_supervisor", bool),
    ("significant", bool),
    ("gets_device", bool),
)
_OPTIONAL_KINDS: Final[tuple[tuple[str, type], ...]] = (
    ("budget", Budget),
    ("backoff", Backoff),
    ("exhausted", Exhausted),
)


def _no_kwargs() -> Mapping[str, Any]:
    return _NONE


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What one child is: an async function, and what to do when it ends.

    The function need not know backplane. If it has a parameter ``task_status``
    (anyio's and trio's convention), the child counts as started when it calls
    ``task_status.started(value)``; otherwise at once. One that has nothing to
    do may raise ``Ignore``.

    Attributes:
        id: Names the child within its supervisor.
        run: The async function.
        args: What to call it with, at each start anew.
        kwargs: The same, by name.
        restart: When it is started again; by default ``PERMANENT``, always.
        shutdown: Seconds that it may take to stop after being asked, before it is
            killed; ``math.inf`` for ever, ``BRUTAL_KILL``: it is not asked. By
            default 5, and for a supervisor for ever. On asyncio an anyio shield
            does not hold off the cancellation that asks.
        significant: Whether its end may end the supervisor; see ``AutoShutdown``.
        start_timeout: Seconds that it may take to say ``started``; then it is
            stopped, and the start has failed. By default for ever.
        budget: One of its own, which its restarts spend instead of the supervisor's.
        backoff: How long to wait before its restarts; by default the supervisor's.
        exhausted: What to do when its budget is spent; by default as its
            supervisor says.
        watchdog: Seconds within which it must call ``alive()`` again, also from a
            thread or a process of its own; one that does not is reported with its
            stack, killed, and restarted. The first seconds count from its start, that
            of its process included. (Of a process the stack is that of who waits for
            it here.) If the supervisor's own loop stood still, it has that much longer,
            but at most as long again. By default it is not watched.
        is_supervisor: Whether it has children of its own, for counts and for the
            default of ``shutdown``.
        gets_device: Whether ``run`` is given the child's Device, as ``device=...``,
            and answers for it itself: for its messages, a request to stop among
            them, and for its end. By default the Device manages it.
        reports_start: Whether ``run`` takes ``task_status``. Derived.

    Raises:
        SpecError: If any of it makes no sense.
    """

    id: str
    """Names the child within its supervisor."""
    run: Callable[..., Awaitable[object]]
    """The async function."""
    args: tuple[Any, ...] = ()
    """What to call it with, at each start anew."""
    _: KW_ONLY
    kwargs: Mapping[str, Any] = field(default_factory=_no_kwargs)
    restart: Restart = Restart.PERMANENT
    shutdown: Grace | None = None
    """Seconds it may take to stop after being asked, then it is killed; ``math.inf``
    waits for ever, ``BRUTAL_KILL`` does not ask. By default 5, and for a supervisor for ever."""
    significant: bool = False
    """Whether its end may end the supervisor; see ``AutoShutdown``."""
    start_timeout: float = math.inf
    """Seconds it may take to say ``started``; later counts as a failed start."""
    budget: Budget | None = None
    """A budget of its own, which its restarts spend instead of the supervisor's."""
    backoff: Backoff | None = None
    """How long to wait before its restarts; by default the supervisor's."""
    exhausted: Exhausted | None = None
    """What to do when its budget is spent; by default as its supervisor says."""
    watchdog: float | None = None
    """Seconds within which it must call ``alive()`` again; a child that does not is
    reported with its stack, killed, and restarted. None: it is not watched."""
    is_supervisor: bool = False
    """Whether it has children of its own; for counts, and the default of ``shutdown``."""
    gets_device: bool = False
    """Whether the function is given the child's Device, as ``device=...``, and answers for
    it: its messages (a request to stop among them), and its end. Otherwise it is managed."""
    reports_start: bool = field(init=False, repr=False, compare=False)
    """Whether the function takes ``task_status``, and so says itself when it has started."""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise SpecError(
                f"the id of a child must be a string that is not empty, not {self.id!r}"
            )
        check_async_function(self.id, self.run)
        if self.kwargs is not _NONE and not (
            isinstance(self.kwargs, Mapping) and all(isinstance(key, str) for key in self.kwargs)
        ):
            raise SpecError(
                f"child {self.id!r}: kwargs must map names to values, not {self.kwargs!r}"
            )
        if not isinstance(self.args, tuple):
            raise SpecError(
                f"child {self.id!r}: args must be a tuple, not {type(self.args).__name__}"
            )
        for name, kind in _KINDS:
            value = getattr(self, name)
            if not isinstance(value, kind):
                check_choice(f"child {self.id!r}: {name}", value, kind)
        for name, kind in _OPTIONAL_KINDS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                check_choice(f"child {self.id!r}: {name}", value, kind)
        if self.significant and self.restart is Restart.PERMANENT:
            raise SpecError(
                f"child {self.id!r} is significant and permanent: it is always restarted, so its "
                "end never ends the supervisor; make it transient or temporary"
            )
        if self.shutdown is not None and self.shutdown is not BRUTAL_KILL:
            check_number(f"child {self.id!r}: shutdown", self.shutdown, 0, allow_inf=True)
        if self.start_timeout != math.inf:
            check_number(f"child {self.id!r}: start_timeout", self.start_timeout, 0)
        if self.watchdog is not None:
            check_number(f"child {self.id!r}: watchdog", self.watchdog, sys.float_info.min)
        object.__setattr__(self, "reports_start", _takes_task_status(self.run))

    @property
    def grace(self) -> Grace:
        """``shutdown``, or its default."""
        if self.shutdown is not None:
            return self.shutdown
        return math.inf if self.is_supervisor else DEFAULT_GRACE

    def but(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)


def check_async_function(id: str, run: object) -> None:
    """Raise unless what a child is to run is an async function, as far as can be seen."""
    code = getattr(run, "__code__", None)
    if code is not None and code.co_flags & inspect.CO_COROUTINE and callable(run):
        return  # the usual case, at little cost
    if not callable(run):
        hint = (
            "; pass the function and its args, not a call of it" if inspect.iscoroutine(run) else ""
        )
        if inspect.iscoroutine(run):
            run.close()
        raise SpecError(
            f"child {id!r}: run must be an async function, not a {type(run).__name__}{hint}"
        )
    inner: Any = run
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    maker = getattr(inner, "__backplane_spec__", None)
    if isinstance(inner, type) and (maker is not None or not _may_be_awaited(inner)):
        hint = f": write {maker}({inner.__name__}, ...)" if maker else ""
        raise SpecError(
            f"child {id!r}: run must be an async function; {inner.__qualname__} is a class{hint}"
        )
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(inner, "__call__", None)  # noqa: B004 - its kind is looked at, not whether it is there
    ):
        return
    # A plain function may still return something to await (a wrapped or
    # bound one); but a generator, or a function with a known other result, cannot.
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise SpecError(f"child {id!r}: run must be an async function; {inner!r} is a generator")
    if inspect.isfunction(inner) and not hasattr(inner, "__wrapped__"):
        raise SpecError(
            f"child {id!r}: run must be an async function; {inner.__qualname__} is not async"
        )


def _may_be_awaited(kind: Any) -> bool:
    """Whether what a class makes can be awaited, as far as can be seen."""
    makes_others = kind.__new__ is not object.__new__ or type(kind).__call__ is not type.__call__
    return makes_others or hasattr(kind, "__await__")


def _takes_task_status(run: Callable[..., object]) -> bool:
    code = getattr(run, "__code__", None)
    if code is not None and not hasattr(run, "__wrapped__"):  # the usual case, at little cost
        return "task_status" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    try:
        parameters = inspect.signature(run).parameters
    except (TypeError, ValueError):  # a callable written in C
        return False
    return "task_status" in parameters


def check_choice(name: str, value: object, kind: type) -> None:
    """Raise unless a setting is of its kind."""
    if not isinstance(value, kind):
        raise SpecError(f"{name} must be of type {kind.__name__}, not {value!r}")


def check_count(name: str, value: object) -> None:
    """Raise unless a setting is a number of things."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < sys.maxsize:
        raise SpecError(f"{name} must be a whole number from 0 up, not {value!r}")


def check_number(
    name: str, value: object, low: float, high: float = math.inf, *, allow_inf: bool = False
) -> None:
    """Raise unless a setting is a number within its limits."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not low <= value <= high  # so no NaN either
        or (value > sys.float_info.max and not (allow_inf and value == math.inf))
    ):
        limit = f"from {low:g} up" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise SpecError(f"{name} must be a number {limit}, not {value!r}")
