"""Groups: who is in them, how often, and who hears of it."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backplane import Device
from backplane.otp import (
    KILL,
    NORMAL,
    Down,
    GroupJoined,
    GroupLeft,
    Groups,
    NoProcessError,
    NotInProcessError,
    Pid,
    Process,
    Ref,
    Scope,
    current_process,
)

if TYPE_CHECKING:  # mypy knows it by another name than pytest
    from otp.process_world import lone
else:
    from .process_world import lone

pytestmark = pytest.mark.anyio


def test_a_process_is_in_a_group_as_often_as_it_has_joined() -> None:
    groups = Groups("scope")
    first, second = lone(), lone()

    groups.join("a", first.pid)
    groups.join("a", second.pid)
    groups.join("a", first.pid)

    assert groups.members("a") == [first.pid, second.pid, first.pid]
    assert groups.local_members("a") == groups.members("a")
    assert groups.leave("a", first.pid)
    assert Counter(groups.members("a")) == {first.pid: 1, second.pid: 1}
    assert groups.leave("a", first.pid)
    assert not groups.leave("a", first.pid)
    assert groups.members("a") == [second.pid]
    assert repr(groups) == "<Groups 'scope' 1 groups>"


def test_leaving_one_group_is_not_leaving_another() -> None:
    groups = Groups()
    process = lone()
    groups.join("a", process.pid)
    groups.join("b", process.pid)

    assert groups.leave("b", process.pid)

    assert groups.which_groups() == ["a"]


def test_an_empty_group_vanishes() -> None:
    groups = Groups()
    process = lone()
    groups.join("a", process.pid)

    groups.leave("a", process.pid)

    assert groups.which_groups() == []
    assert groups.members("a") == []
    assert groups._ledger._rows == {}
    assert groups._ledger._holders == {}


def test_names_of_groups_are_the_same_only_if_their_types_are() -> None:
    groups = Groups()
    first, second = lone(), lone()
    groups.join(1, first.pid)
    groups.join(1.0, second.pid)

    assert groups.members(1) == [first.pid]
    assert groups.members(1.0) == [second.pid]
    assert groups.members(True) == []


def test_only_a_living_process_joins() -> None:
    groups = Groups()
    process = lone()
    process.end(NORMAL)

    with pytest.raises(NoProcessError, match="cannot join"):
        groups.join("a", process.pid)
    with pytest.raises(NotInProcessError, match="cannot join"):
        groups.join("a")
    with pytest.raises(NotInProcessError, match="cannot leave"):
        groups.leave("a")

    assert not groups.leave("a", process.pid)
    assert groups.which_groups() == []


@pytest.mark.parametrize("reason", [NORMAL, KILL], ids=str)
async def test_the_dead_have_left_before_anybody_hears_of_their_end(reason: object) -> None:
    groups = Groups()
    seen: list[list[Pid]] = []

    async def member() -> None:
        groups.join("a")
        groups.join("a")
        await current_process().receive()

    async def watcher(scope: Scope) -> None:
        me = current_process()
        ref, members = groups.monitor("a")
        assert members == []
        pid, down = scope.spawn_monitor(member)
        for _ in range(2):
            assert await me.receive() == GroupJoined(ref, "a", (pid,))

        if reason is KILL:
            pid.exit(KILL)
        else:
            pid.send("end")
        assert (await me.receive(Down)).ref is down
        seen.append(groups.members("a"))

        for _ in range(2):
            assert await me.receive(timeout=0) == GroupLeft(ref, "a", (pid,))

    async with Scope() as scope:
        assert await scope.spawn(watcher, scope).wait() is NORMAL

    assert seen == [[]]


async def test_a_message_goes_once_to_each_process_in_a_group() -> None:
    groups = Groups()
    first, second, full = lone(), lone(), Process(Device("full"), capacity=1)
    for process in first, second, first, full:
        groups.join("a", process.pid)

    assert groups.publish("a", 1) == 3
    assert groups.publish("a", 2) == 2
    assert groups.publish("b", 3) == 0

    assert [list(each.mailbox) for each in (first, second, full)] == [[1, 2], [1, 2], [1]]


def test_a_monitor_of_a_group_hears_of_that_group_alone() -> None:
    groups = Groups()
    watcher, process = lone(), lone()
    groups.join("a", process.pid)

    ref, members = groups.monitor("a", watcher.pid)
    groups.join("b", process.pid)
    groups.join("a", watcher.pid)
    groups.leave("a", process.pid)

    assert members == [process.pid]
    assert list(watcher.mailbox) == [
        GroupJoined(ref, "a", (watcher.pid,)),
        GroupLeft(ref, "a", (process.pid,)),
    ]


def test_a_monitor_of_all_hears_of_groups_that_are_still_to_come() -> None:
    groups = Groups()
    watcher, process = lone(), lone()
    groups.join("a", process.pid)

    ref, members = groups.monitor_all(watcher.pid)
    groups.join("b", process.pid)
    process.end(NORMAL)

    assert members == {"a": [process.pid]}
    assert list(watcher.mailbox) == [
        GroupJoined(ref, "b", (process.pid,)),
        GroupLeft(ref, "a", (process.pid,)),
        GroupLeft(ref, "b", (process.pid,)),
    ]


def test_monitors_add_up_and_end_with_their_process() -> None:
    groups = Groups()
    watcher, process = lone(), lone()

    first, _ = groups.monitor("a", watcher.pid)
    second, _ = groups.monitor("a", watcher.pid)
    groups.join("a", process.pid)
    heard = [message.ref for message in watcher.mailbox]
    watcher.end(NORMAL)

    assert heard == [first, second]
    assert groups._ledger._ears == {}
    assert list(groups._ledger._holders) == [process]


async def test_an_ended_monitor_leaves_nothing_in_the_mailbox() -> None:
    groups = Groups()
    process = lone()

    async def main() -> None:
        me = current_process()
        ref, _ = groups.monitor("a")
        other, _ = groups.monitor_all()
        groups.join("a", process.pid)
        me.pid.send("kept")
        groups.leave("a", process.pid)

        assert groups.demonitor(ref)
        assert not groups.demonitor(ref)
        assert not groups.demonitor(Ref())
        groups.join("a", process.pid)

        assert list(me.mailbox) == [
            GroupJoined(other, "a", (process.pid,)),
            "kept",
            GroupLeft(other, "a", (process.pid,)),
            GroupJoined(other, "a", (process.pid,)),
        ]

    async with Scope() as scope:
        assert await scope.spawn(main).wait() is NORMAL


async def test_only_its_own_process_ends_a_monitor() -> None:
    groups = Groups()
    watcher = lone()
    ref, _ = groups.monitor("a", watcher.pid)

    async def main() -> None:
        groups.join("a")
        assert not groups.demonitor(ref)
        groups.leave("a")

    async with Scope() as scope:
        assert await scope.spawn(main).wait() is NORMAL

    assert len(watcher.mailbox) == 2
    with pytest.raises(NotInProcessError):
        groups.demonitor(ref)


@pytest.mark.usefixtures("rapid_switching")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_snapshot_and_what_comes_after_it_miss_nothing() -> None:
    groups = Groups()
    start = threading.Barrier(3)
    watchers: list[tuple[Process, list[Pid]]] = []

    def churn() -> None:
        start.wait()
        for _ in range(200):
            process = lone()
            groups.join("a", process.pid)
            groups.join("a", process.pid)
            process.end(NORMAL)
        groups.join("a", lone().pid)

    def watch() -> None:
        start.wait()
        for _ in range(50):
            watcher = lone()
            watchers.append((watcher, groups.monitor("a", watcher.pid)[1]))

    async with anyio.create_task_group() as tg:
        for work in churn, churn, watch:
            tg.start_soon(anyio.to_thread.run_sync, work)

    expected = Counter(groups.members("a"))
    assert expected.total() == 2
    for watcher, snapshot in watchers:
        members = Counter(snapshot)
        for message in watcher.mailbox:
            members[message.pids[0]] += 1 if isinstance(message, GroupJoined) else -1
        assert +members == expected
        assert min(members.values()) >= 0


class Machine(RuleBasedStateMachine):
    """Groups are what a dictionary of counts says, and so is what a monitor makes of its mail."""

    NAMES = st.sampled_from(["a", "b", 1, True])
    WHO = st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.groups = Groups()
        self.processes = [lone() for _ in range(3)]
        self.model: Counter[tuple[str, Process]] = Counter()
        self.monitors: list[tuple[Ref, Process, str | None, Counter[tuple[str, Pid]]]] = []

    @rule(group=NAMES, who=WHO)
    def join(self, group: Any, who: int) -> None:
        self.groups.join(group, self.processes[who].pid)
        self.model[repr(group), self.processes[who]] += 1

    @rule(group=NAMES, who=WHO)
    def leave(self, group: Any, who: int) -> None:
        key = repr(group), self.processes[who]
        assert self.groups.leave(group, self.processes[who].pid) == (self.model[key] > 0)
        self.model[key] = max(0, self.model[key] - 1)

    @rule(who=WHO)
    def end(self, who: int) -> None:
        process, self.processes[who] = self.processes[who], lone()
        process.end(NORMAL)
        self.model = Counter({key: n for key, n in self.model.items() if key[1] is not process})

    @rule(group=NAMES)
    def monitor(self, group: Any) -> None:
        watcher = lone()
        ref, members = self.groups.monitor(group, watcher.pid)
        known = Counter((repr(group), pid) for pid in members)
        self.monitors.append((ref, watcher, repr(group), known))

    @rule()
    def monitor_all(self) -> None:
        if "1" in map(repr, self.groups.which_groups()):
            return  # in a dictionary 1 and True are one
        watcher = lone()
        ref, members = self.groups.monitor_all(watcher.pid)
        known = Counter((repr(group), pid) for group in members for pid in members[group])
        self.monitors.append((ref, watcher, None, known))

    @invariant()
    def agrees(self) -> None:
        expected = Counter({(name, process.pid): n for (name, process), n in self.model.items()})
        told = Counter(
            (repr(group), pid)
            for group in self.groups.which_groups()
            for pid in self.groups.members(group)
        )
        assert told == +expected
        for ref, watcher, name, known in self.monitors:
            while watcher.mailbox:
                message = watcher.mailbox.popleft()
                assert message.ref is ref
                known[repr(message.group), message.pids[0]] += (
                    1 if isinstance(message, GroupJoined) else -1
                )
            assert +known == +Counter(
                {key: n for key, n in expected.items() if name in (None, key[0])}
            )


TestGroupsAgreeWithCounters = Machine.TestCase
