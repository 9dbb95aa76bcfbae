"""Who stops and who starts: the decisions of a supervisor, without clock or loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, assert_never

from ._spec import AutoShutdown, Restart, Strategy

Id = TypeVar("Id")


def wants_restart(restart: Restart, ended_well: bool) -> bool:
    """Whether a child that has ended by itself is to be started again."""
    match restart:
        case Restart.PERMANENT:
            return True
        case Restart.TRANSIENT:
            return not ended_well
        case Restart.TEMPORARY:
            return False
        case never:
            assert_never(never)


def group_of(strategy: Strategy, order: Sequence[Id], failed: Iterable[Id]) -> list[Id]:
    """The children that a restart concerns, in start order.

    Args:
        strategy: The supervisor's.
        order: All its children, in start order.
        failed: Those that have to be restarted: one, or several that failed
            while an earlier restart was waiting.
    """
    broken = set(failed)
    match strategy:
        case Strategy.ONE_FOR_ONE:
            return [child for child in order if child in broken]
        case Strategy.ONE_FOR_ALL:
            return list(order) if broken else []
        case Strategy.REST_FOR_ONE:
            first = next((i for i, child in enumerate(order) if child in broken), len(order))
            return list(order[first:])
        case never:
            assert_never(never)


def ends_supervisor(policy: AutoShutdown, any_left: bool) -> bool:
    """Whether a supervisor ends now that a significant child has ended for good.

    Args:
        policy: The supervisor's.
        any_left: Whether any of its significant children runs, or will again.
    """
    match policy:
        case AutoShutdown.NEVER:
            return False
        case AutoShutdown.ANY_SIGNIFICANT:
            return True
        case AutoShutdown.ALL_SIGNIFICANT:
            return not any_left
        case never:
            assert_never(never)
