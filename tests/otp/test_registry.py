"""Registries and plain names: who has what, whoever asks, whenever somebody ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backplane import Device
from backplane.otp import (
    KILL,
    NORMAL,
    AlreadyRegisteredError,
    Down,
    MailboxFullError,
    NoProcessError,
    NoRegistryError,
    NotInProcessError,
    NotRegisteredError,
    Overflow,
    Pid,
    Process,
    Registered,
    Registry,
    Scope,
    Unregistered,
    Via,
    await_name,
    current_process,
    current_registry,
    register,
    registered,
    send,
    unregister,
    wait_free,
    whereis,
)
from backplane.otp._ledger import Entry, Ledger
from backplane.otp._names import resolve
from backplane.otp._tables import put

if TYPE_CHECKING:  # mypy knows it by another name than pytest
    from otp.process_world import lone, within
else:
    from .process_world import lone, within

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


async def idle() -> None:
    """Be there until told to end."""
    await current_process().receive(lambda message: message == "end")


# A registry with unique keys.


async def test_a_process_is_found_under_the_key_that_it_has_registered() -> None:
    registry: Registry[str, int] = Registry("names")

    async def main() -> None:
        me = current_process().pid

        registry.register("a", 7)

        assert registry.whereis("a") == me
        assert registry.lookup("a") == [(me, 7)]
        assert registry.keys() == ["a"]
        assert registry.values("a") == [7]
        assert registry.values("b") == []
        assert registry.whereis("b") is None
        assert "a" in registry
        assert "b" not in registry
        assert len(registry) == 1
        assert registry.count("a") == 1
        assert repr(registry) == "<Registry 'names' 1 entries>"

    await within(main)


async def test_a_value_that_is_not_given_is_none() -> None:
    registry = Registry()
    process = lone()

    registry.register("a", pid=process.pid)

    assert registry.lookup("a") == [(process.pid, None)]


@pytest.mark.parametrize("by_itself", [False, True], ids=["by another", "by the same process"])
async def test_a_key_that_is_taken_cannot_be_registered(by_itself: bool) -> None:
    registry = Registry()
    first, second = lone(), lone()
    registry.register("a", 1, first.pid)

    with pytest.raises(
        AlreadyRegisteredError, match=r"cannot register 'a': <Pid .* already"
    ) as info:
        registry.register("a", 2, (first if by_itself else second).pid)

    assert info.value.pid == first.pid
    assert info.value.key == "a"
    assert registry.lookup("a") == [(first.pid, 1)]


async def test_a_process_may_have_many_keys() -> None:
    registry = Registry()
    process = lone()

    registry.register("a", 1, process.pid)
    registry.register("b", 2, process.pid)

    assert registry.keys(process.pid) == ["a", "b"]


@pytest.mark.parametrize(
    "keys",
    [
        [1, 1.0, True],
        [0, False, 0.0],
        [(1, "a"), (1.0, "a"), (True, "a")],
        [((1,), 2), ((1.0,), 2)],
        ["a", b"a", ("a",)],
        [None, 0],
    ],
    ids=repr,
)
async def test_keys_are_the_same_only_if_their_types_are(keys: list[Hashable]) -> None:
    registry: Registry[Any, int] = Registry()
    process = lone()

    for index, key in enumerate(keys):
        registry.register(key, index, process.pid)

    assert [registry.values(key, process.pid) for key in keys] == [[i] for i in range(len(keys))]


async def test_a_key_must_be_hashable() -> None:
    registry = Registry()

    with pytest.raises(TypeError):
        registry.register([], pid=lone().pid)

    assert len(registry) == 0


async def test_only_a_living_process_can_be_registered() -> None:
    registry = Registry()
    process = lone()
    process.end(NORMAL)

    with pytest.raises(NoProcessError, match="cannot register"):
        registry.register("a", pid=process.pid)
    with pytest.raises(NotInProcessError, match="cannot register"):
        registry.register("a")

    assert registry.select() == []


async def test_a_key_that_is_given_up_is_free() -> None:
    registry = Registry()
    first, second = lone(), lone()
    registry.register("a", 1, first.pid)

    assert registry.unregister("a", second.pid) == 0
    assert registry.unregister("a", first.pid) == 1
    assert registry.unregister("a", first.pid) == 0

    registry.register("a", 2, second.pid)
    assert registry.lookup("a") == [(second.pid, 2)]
    assert registry.keys(first.pid) == []
    first.end(NORMAL)
    assert registry.lookup("a") == [(second.pid, 2)]


async def test_only_the_holder_of_a_key_updates_its_value() -> None:
    registry: Registry[str, int] = Registry()
    registry.register("theirs", 1, lone().pid)

    async def main() -> None:
        registry.register("mine", 1)

        assert registry.update_value("mine", lambda value: value + 1) == (2, 1)
        with pytest.raises(NotRegisteredError, match="cannot update 'theirs'"):
            registry.update_value("theirs", lambda value: value + 1)

        assert registry.values("mine") == [2]

    await within(main)
    with pytest.raises(NotInProcessError):
        registry.update_value("theirs", lambda value: value + 1)


async def test_select_and_match_choose_entries() -> None:
    registry: Registry[str, int] = Registry()
    process = lone()
    for value, key in enumerate("abc"):
        registry.register(key, value, process.pid)

    assert registry.select() == [
        ("a", process.pid, 0),
        ("b", process.pid, 1),
        ("c", process.pid, 2),
    ]
    assert registry.select(lambda key, _, value: key < "c" and value) == [("b", process.pid, 1)]
    assert registry.match("b", lambda value: value == 1) == [(process.pid, 1)]
    assert registry.match("b", lambda value: value == 2) == []


async def test_an_empty_registry_is_true_and_keeps_what_it_is_given() -> None:
    registry = Registry()

    registry.meta["limit"] = 3

    assert registry
    assert registry.meta == {"limit": 3}


@pytest.mark.parametrize("duplicate", [False, True], ids=["many keys", "many processes"])
async def test_to_give_up_a_key_is_not_to_look_at_all_others(duplicate: bool) -> None:
    looks: list[object] = []

    @dataclass(frozen=True)
    class Key:
        number: int

        def __hash__(self) -> int:
            return self.number

        def __eq__(self, other: object) -> bool:
            looks.append(other)
            return isinstance(other, Key) and other.number == self.number

    registry: Registry[Key, None] = Registry(duplicate=duplicate)
    process = lone()
    for number in range(1000):
        if duplicate:
            registry.register(Key(7), pid=lone().pid)
        else:
            registry.register(Key(number), pid=process.pid)
    if duplicate:
        registry.register(Key(7), pid=process.pid)
    looks.clear()

    assert registry.unregister(Key(7), process.pid) == 1
    assert len(looks) < 10


async def test_what_a_filter_has_given_up_itself_is_not_given_up_twice() -> None:
    registry = Registry()
    process = lone()
    registry.register("a", pid=process.pid)

    count = registry.unregister_match(
        "a", lambda _: registry.unregister("a", process.pid), process.pid
    )

    assert count == 0
    assert registry.select() == []


# The end of a process.


@pytest.mark.parametrize("how", ["it returns", "it is killed"])
async def test_a_key_is_free_when_a_monitor_hears_of_the_end(how: str) -> None:
    registry = Registry()

    async def main() -> None:
        me = current_process()
        assert me.scope is not None
        pid, ref = me.scope.spawn_monitor(idle)
        registry.register("a", pid=pid)
        registry.register("b", pid=pid)

        if how == "it returns":
            pid.send("end")
        else:
            pid.exit(KILL)
        down = await me.receive(Down)
        registry.register("a")

        assert down.ref is ref
        assert registry.whereis("a") == me.pid
        assert registry.keys(pid) == []

    await within(main)
    assert registry.select() == []


async def test_a_dead_holder_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    process, listener = lone(), lone()
    # As when it ends in another thread while it is being registered.
    monkeypatch.setattr(Process, "at_end", lambda self, release: None)
    for key in "abc":
        registry.register(key, pid=process.pid)
    registry.subscribe(listener.pid)

    process.end(NORMAL)

    assert registry.whereis("a") is None
    registry.register("b", pid=listener.pid)
    assert registry.select() == [("b", listener.pid, None)]
    assert [type(message) for message in listener.mailbox] == [
        Unregistered, Unregistered, Registered, Unregistered,
    ]  # fmt: skip


async def test_a_process_that_has_given_up_all_keys_is_forgotten() -> None:
    registry = Registry()
    process = lone()

    registry.register("a", pid=process.pid)
    registry.unregister("a", process.pid)

    assert not process._at_end
    assert registry._ledger._holders == {}
    assert registry._ledger._rows == {}


def test_a_row_that_vanishes_while_it_is_written_to_is_made_again() -> None:
    class Rows(dict[Hashable, dict[str, int]]):
        def setdefault(self, key: Hashable, default: Any = None) -> Any:
            row = super().setdefault(key, default)
            if "finalizer" in row:  # it runs just now
                del self[key]
            return row

    rows = Rows({"slot": {"finalizer": 1}})

    put(rows, "slot", "item", 2)

    assert rows == {"slot": {"item": 2}}


# Duplicate keys.


async def test_a_duplicate_key_has_many_entries_also_of_one_process() -> None:
    registry: Registry[str, int] = Registry(duplicate=True)
    first, second = lone(), lone()

    registry.register("a", 1, first.pid)
    registry.register("a", 2, second.pid)
    registry.register("a", 3, first.pid)

    assert registry.lookup("a") == [(first.pid, 1), (second.pid, 2), (first.pid, 3)]
    assert registry.keys(first.pid) == ["a", "a"]
    assert registry.values("a", first.pid) == [1, 3]
    assert registry.count("a") == 3
    assert registry.unregister_match("a", lambda value: value > 1, first.pid) == 1
    assert registry.lookup("a") == [(first.pid, 1), (second.pid, 2)]
    first.end(NORMAL)
    assert registry.lookup("a") == [(second.pid, 2)]


async def test_dispatch_calls_once_with_all_and_never_with_nobody() -> None:
    registry: Registry[str, int] = Registry(duplicate=True)
    process = lone()
    registry.register("a", 1, process.pid)
    registry.register("a", 2, process.pid)
    calls: list[list[tuple[Pid, int]]] = []

    assert registry.dispatch("a", calls.append) == 2
    assert registry.dispatch("b", calls.append) == 0

    assert calls == [[(process.pid, 1), (process.pid, 2)]]


@pytest.mark.parametrize(
    "use",
    [
        lambda registry: registry.whereis("a"),
        lambda registry: registry.via("a"),
        lambda registry: registry.update_value("a", abs),
        lambda registry: registry.__enter__(),
    ],
    ids=["whereis", "via", "update_value", "with"],
)
async def test_what_means_one_process_is_refused_for_duplicate_keys(
    use: Callable[[Registry[Any, Any]], object],
) -> None:
    registry = Registry("topics", duplicate=True)

    with pytest.raises(ValueError, match="registry 'topics' keeps duplicate keys"):
        use(registry)
    with pytest.raises(ValueError, match="registry 'topics' keeps duplicate keys"):
        await registry.await_name("a")


# Listeners.


async def test_a_listener_hears_of_each_change_from_its_snapshot_on() -> None:
    registry: Registry[str, int] = Registry()
    process, listener = lone(), lone()
    registry.register("a", 1, process.pid)

    snapshot = registry.subscribe(listener.pid)
    registry.subscribe(listener.pid)  # no difference
    registry.register("b", 2, process.pid)
    process.end(NORMAL)

    assert snapshot == [("a", process.pid, 1)]
    assert list(listener.mailbox) == [
        Registered(registry, "b", process.pid, 2),
        Unregistered(registry, "a", process.pid),
        Unregistered(registry, "b", process.pid),
    ]


async def test_a_process_that_does_not_listen_any_longer_hears_nothing() -> None:
    registry = Registry()

    async def main() -> None:
        me = current_process()
        registry.subscribe()
        registry.unsubscribe()
        registry.unsubscribe()
        registry.register("a")

        with pytest.raises(TimeoutError):
            await me.receive(timeout=0)

    await within(main)
    assert registry._ledger._holders == {}


async def test_the_end_of_a_listener_is_the_end_of_its_listening() -> None:
    registry = Registry()
    listener = lone()
    registry.register("a", pid=listener.pid)
    registry.subscribe(listener.pid)

    listener.end(NORMAL)

    assert registry._ledger._holders == {}
    assert registry._ledger._ears == {}


async def test_a_listener_with_a_full_mailbox_misses_what_does_not_fit() -> None:
    registry = Registry()
    listener, process = Process(Device("slow"), capacity=1), lone()
    registry.subscribe(listener.pid)

    registry.register("a", pid=process.pid)
    registry.register("b", pid=process.pid)

    assert list(listener.mailbox) == [Registered(registry, "a", process.pid, None)]
    assert len(registry) == 2


# Waiting.


async def test_who_waits_for_a_key_gets_whoever_registers_it() -> None:
    registry = Registry()
    process = lone()
    found: list[Pid] = []

    async def wait() -> None:
        found.append(await registry.await_name("a"))

    async with anyio.create_task_group() as tg:
        tg.start_soon(wait)
        tg.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        registry.register("b", pid=process.pid)
        registry.register("a", pid=process.pid)

    assert found == [process.pid, process.pid]
    assert registry._ledger._waiters == {}


async def test_who_waits_for_a_free_key_waits_for_the_end_of_its_holder() -> None:
    registry = Registry()

    async with Scope() as scope:
        pid = scope.spawn(idle)
        registry.register("a", pid=pid)
        await registry.wait_free("b")
        async with anyio.create_task_group() as tg:
            tg.start_soon(registry.wait_free, "a")
            await anyio.wait_all_tasks_blocked()
            assert registry.whereis("a") == pid
            pid.send("end")

    assert registry.whereis("a") is None


@virtual
async def test_waiting_for_a_key_ends_in_time() -> None:
    registry = Registry()
    registry.register("taken", pid=lone().pid)

    with pytest.raises(TimeoutError):
        await registry.await_name("free", timeout=60)
    with pytest.raises(TimeoutError):
        await registry.wait_free("taken", timeout=60)
    with pytest.raises(TimeoutError):
        await registry.await_name("free", timeout=0)

    assert 120 <= anyio.current_time() < 121
    assert registry._ledger._waiters == {}


async def test_waiting_for_a_key_can_be_cancelled() -> None:
    registry = Registry()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await registry.await_name("a")

    assert scope.cancelled_caught
    assert registry._ledger._waiters == {}


# Addresses.


async def test_a_via_is_looked_up_at_each_use() -> None:
    registry = Registry("names")
    first, second = lone(), lone()
    via = registry.via("a")
    registry.register("a", pid=first.pid)

    assert send(via, 1)
    assert resolve(via) is first
    first.end(NORMAL)
    with pytest.raises(NoProcessError, match="cannot send: no process <Via 'a' in 'names'>"):
        send(via, 2)
    with pytest.raises(NoProcessError, match="cannot call: no process <Via 'a' in 'names'>"):
        resolve(via, "call")
    registry.register("a", pid=second.pid)

    assert via.send(3)
    assert list(second.mailbox) == [3]
    assert via.whereis() == second.pid
    assert via == Via(registry, "a")


async def test_sending_to_a_dead_process_does_nothing() -> None:
    process = lone()
    process.end(NORMAL)

    assert send(process.pid, 1) is False
    assert resolve(process.pid) is process


async def test_a_via_can_lead_through_anything_that_tells_who_has_a_key() -> None:
    process = lone()

    class Constant:
        name = "constant"

        def whereis(self, key: object, /) -> Pid | None:
            return process.pid if key == "a" else None

    assert send(Via(Constant(), "a"), 1)
    assert Via(Constant(), "b").whereis() is None


async def test_what_is_no_address_is_refused() -> None:
    target: Any = 7

    with pytest.raises(TypeError, match="a process is a Pid, a Via or a name, not 7"):
        resolve(target)


async def test_a_full_mailbox_says_so_to_who_sends_by_name() -> None:
    process = Process(Device(), capacity=1, overflow=Overflow.RAISE)

    with Registry():
        register("a", process.pid)
        send("a", 1)
        with pytest.raises(MailboxFullError):
            send("a", 2)


# Plain names.


async def test_plain_names_are_those_of_the_registry_around() -> None:
    process = lone()

    with Registry() as registry:
        assert current_registry() is registry
        register("a", process.pid)
        registry.register(("no", "name"), pid=process.pid)

        assert whereis("a") == process.pid
        assert registered() == ["a"]
        assert resolve("a") is process
        assert send("a", "hello")
        assert await await_name("a") == process.pid
        assert unregister("a")
        assert not unregister("a")
        await wait_free("a")
        with pytest.raises(NoProcessError, match="cannot send: no process 'a'"):
            send("a", "hello")
        with pytest.raises(NoProcessError, match="cannot call: no process 'a'"):
            resolve("a", "call")

    assert list(process.mailbox) == ["hello"]


async def test_registries_nest() -> None:
    with Registry("outer") as outer:
        with Registry("inner") as inner, outer, inner:
            assert current_registry() is inner
        assert current_registry() is outer


async def test_without_a_registry_around_there_are_no_plain_names() -> None:
    for use in (current_registry, registered, lambda: whereis("a"), lambda: send("a", 1)):
        with pytest.raises(NoRegistryError, match="inside `with Registry"):
            use()


async def test_a_block_closed_from_another_context_changes_nothing_there() -> None:
    other = Registry("other")

    with Registry() as registry:
        other.__exit__(None, None, None)

        assert current_registry() is registry
    other.__exit__(None, None, None)


async def test_processes_of_a_scope_in_the_block_know_its_names() -> None:
    async def server() -> None:
        register("server")
        sender = await current_process().receive()
        sender.send("pong")

    async def client() -> None:
        await await_name("server")
        send("server", current_process().pid)
        assert await current_process().receive() == "pong"

    with Registry():
        async with Scope() as scope:
            serving, asking = scope.spawn(server), scope.spawn(client)
            assert await serving.wait() is NORMAL
            assert await asking.wait() is NORMAL


async def test_a_process_has_one_plain_name_and_a_name_one_process() -> None:
    first, second = lone(), lone()

    with Registry() as registry:
        registry.register(1, pid=first.pid)  # no name
        register("a", first.pid)
        with pytest.raises(AlreadyRegisteredError, match="has the name 'a' already") as info:
            register("b", first.pid)
        assert (info.value.key, info.value.name) == ("b", "a")
        with pytest.raises(AlreadyRegisteredError, match="has it already"):
            register("a", second.pid)

        assert registered() == ["a"]


# Threads.


@pytest.mark.usefixtures("rapid_switching")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_of_threads_that_register_one_key_exactly_one_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look = Ledger.entries

    def look_and_pause(self: Ledger, slot: Hashable) -> list[Entry]:
        entries = look(self, slot)
        time.sleep(0.0001)  # lets another thread in, if it may
        return entries

    monkeypatch.setattr(Ledger, "entries", look_and_pause)
    registry: Registry[int, int] = Registry()
    processes = [lone() for _ in range(4)]
    start = threading.Barrier(len(processes))
    won: list[tuple[int, int]] = []

    def compete(index: int) -> None:
        for key in range(50):
            start.wait()
            try:
                registry.register(key, index, processes[index].pid)
            except AlreadyRegisteredError:
                pass
            else:
                won.append((key, index))
            assert registry.whereis(key) is not None

    async with anyio.create_task_group() as tg:
        for index in range(len(processes)):
            tg.start_soon(anyio.to_thread.run_sync, compete, index)

    assert sorted(key for key, _ in won) == list(range(50))
    assert sorted((key, value) for key, _, value in registry.select()) == sorted(won)


@pytest.mark.usefixtures("rapid_switching")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_threads_that_take_turns_with_a_key_never_have_it_together() -> None:
    registry = Registry()
    start = threading.Barrier(4)
    holding: list[int] = []
    most: list[int] = []

    def compete(index: int) -> None:
        start.wait()
        done = 0
        while done < 100:
            process = lone()
            try:
                registry.register("key", pid=process.pid)
            except AlreadyRegisteredError:
                continue
            holding.append(index)
            most.append(len(holding))
            holding.remove(index)
            if done % 2:
                process.end(NORMAL)
            else:
                registry.unregister("key", process.pid)
            done += 1

    async with anyio.create_task_group() as tg:
        for index in range(4):
            tg.start_soon(anyio.to_thread.run_sync, compete, index)

    assert most == [1] * 400
    assert registry.select() == []
    assert registry._ledger._holders == {}


async def test_a_wait_is_woken_from_another_thread() -> None:
    registry = Registry()
    process = lone()
    blocked = threading.Event()

    def work() -> None:
        blocked.wait()
        registry.register("a", pid=process.pid)

    async with anyio.create_task_group() as tg:
        tg.start_soon(anyio.to_thread.run_sync, work)
        blocked.set()
        assert await registry.await_name("a") == process.pid


# Whatever is done, a registry says what dictionaries say.


class Machine(RuleBasedStateMachine):
    """Unique or duplicate, as a subclass says."""

    duplicate = False

    def __init__(self) -> None:
        super().__init__()
        self.registry: Registry[Any, int] = Registry(duplicate=self.duplicate)
        self.listener = lone()
        self.registry.subscribe(self.listener.pid)
        self.processes = [lone() for _ in range(3)]
        self.model: list[tuple[Any, Process, int]] = []
        self.events: list[object] = []

    KEYS = st.sampled_from([1, 1.0, True, "a", ("a", 1), ("a", True)])
    WHO = st.integers(0, 2)

    @staticmethod
    def same(a: Any, b: Any) -> bool:
        return repr(a) == repr(b)

    @rule(key=KEYS, who=WHO, value=st.integers(0, 3))
    def register(self, key: Any, who: int, value: int) -> None:
        process = self.processes[who]
        taken = [row for row in self.model if self.same(row[0], key)]
        if taken and not self.duplicate:
            with pytest.raises(AlreadyRegisteredError) as info:
                self.registry.register(key, value, process.pid)
            assert info.value.pid == taken[0][1].pid
        else:
            self.registry.register(key, value, process.pid)
            self.model.append((key, process, value))
            self.events.append(Registered(self.registry, key, process.pid, value))

    def remove(self, rows: list[tuple[Any, Process, int]]) -> None:
        for row in rows:
            self.events.append(Unregistered(self.registry, row[0], row[1].pid))
        self.model = [row for row in self.model if not any(row is other for other in rows)]

    @rule(key=KEYS, who=WHO, least=st.integers(0, 3))
    def unregister(self, key: Any, who: int, least: int) -> None:
        process = self.processes[who]
        rows = [
            row
            for row in self.model
            if self.same(row[0], key) and row[1] is process and row[2] >= least
        ]
        count = self.registry.unregister_match(key, lambda value: value >= least, process.pid)
        assert count == len(rows)
        self.remove(rows)

    @rule(who=WHO)
    def end(self, who: int) -> None:
        process, self.processes[who] = self.processes[who], lone()
        process.end(NORMAL)
        self.remove([row for row in self.model if row[1] is process])

    @invariant()
    def agrees(self) -> None:
        rows = [(repr(key), process.pid, value) for key, process, value in self.model]
        told = [(repr(key), pid, value) for key, pid, value in self.registry.select()]
        assert sorted(map(repr, told)) == sorted(map(repr, rows))
        assert len(self.registry) == len(rows)
        assert list(self.listener.mailbox) == self.events
        for key in (1, 1.0, True, "a", ("a", 1), ("a", True)):
            expected = [(pid, value) for name, pid, value in rows if name == repr(key)]
            assert self.registry.lookup(key) == expected
            if not self.duplicate:
                assert self.registry.whereis(key) == (expected[0][0] if expected else None)
        for process in self.processes:
            keys = [key for key, owner, _ in self.model if owner is process]
            assert list(map(repr, self.registry.keys(process.pid))) == list(map(repr, keys))


class DuplicateMachine(Machine):
    duplicate = True


TestUniqueKeysAgreeWithDictionaries = Machine.TestCase
TestDuplicateKeysAgreeWithDictionaries = DuplicateMachine.TestCase


@given(st.recursive(st.sampled_from([0, 0.0, False, 1, 1.0, True, "a"]), st.tuples))
def test_a_key_is_equal_to_itself(key: Hashable) -> None:
    registry: Registry[Any, None] = Registry()

    registry.register(key, pid=lone().pid)

    assert key in registry
