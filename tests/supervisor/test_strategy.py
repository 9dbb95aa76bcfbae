"""Who is stopped and started again: the decisions, against naive ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.supervisor import AutoShutdown, Restart, Strategy
from backplane.supervisor._strategy import ends_supervisor, group_of, wants_restart


@st.composite
def orders(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    order = draw(st.lists(st.integers(0, 20), unique=True))
    failed = draw(st.lists(st.sampled_from(order), unique=True)) if order else []
    return order, failed


@given(orders())
def test_one_for_one_concerns_those_that_failed_in_start_order(
    children: tuple[list[int], list[int]],
) -> None:
    order, failed = children
    assert group_of(Strategy.ONE_FOR_ONE, order, failed) == sorted(failed, key=order.index)


@given(orders())
def test_one_for_all_concerns_all(children: tuple[list[int], list[int]]) -> None:
    order, failed = children
    assert group_of(Strategy.ONE_FOR_ALL, order, failed) == (order if failed else [])


@given(orders())
def test_rest_for_one_concerns_the_eldest_that_failed_and_the_younger_ones(
    children: tuple[list[int], list[int]],
) -> None:
    order, failed = children
    group = group_of(Strategy.REST_FOR_ONE, order, failed)
    for child in order:
        elder_or_self = order[: order.index(child) + 1]
        assert (child in group) == any(other in failed for other in elder_or_self)
    assert group == sorted(group, key=order.index)


@pytest.mark.parametrize("strategy", Strategy)
def test_a_failed_child_that_is_no_longer_known_concerns_nobody(strategy: Strategy) -> None:
    assert group_of(strategy, [1, 2], [3]) in ([], [1, 2])
    assert group_of(strategy, [], []) == []


@pytest.mark.parametrize(
    ("restart", "after_success", "after_fault"),
    [
        (Restart.PERMANENT, True, True),
        (Restart.TRANSIENT, False, True),
        (Restart.TEMPORARY, False, False),
    ],
)
def test_the_restart_type_decides_by_how_the_child_ended(
    restart: Restart, after_success: bool, after_fault: bool
) -> None:
    assert wants_restart(restart, ended_well=True) is after_success
    assert wants_restart(restart, ended_well=False) is after_fault


@pytest.mark.parametrize("left", [False, True])
def test_auto_shutdown_looks_at_the_significant_children_that_are_left(left: bool) -> None:
    assert not ends_supervisor(AutoShutdown.NEVER, left)
    assert ends_supervisor(AutoShutdown.ANY_SIGNIFICANT, left)
    assert ends_supervisor(AutoShutdown.ALL_SIGNIFICANT, left) == (not left)
