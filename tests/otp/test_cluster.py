"""Clusters: pids that travel, names and groups of several nodes, losses, restarts, and lies."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane import Device, Line
from backplane.bridge import (
    AuthError,
    EncodeError,
    EndedError,
    Limits,
    Node,
    NodeDown,
    NodeUp,
    NotConnectedError,
    PayloadError,
    RemoteError,
    Right,
    tell,
)
from backplane.bridge import call as ask
from backplane.bridge._exports import QUIET
from backplane.bridge._frames import TOKEN
from backplane.lowlevel import Outpost, outpost_of
from backplane.otp import (
    NOCONNECTION,
    NOPROC,
    NORMAL,
    Down,
    Exited,
    GenServer,
    NoProcessError,
    Pid,
    Registry,
    ScopeError,
    ServerDownError,
    _neighbours,
    call,
    current_process,
    current_scope,
    start,
    stop,
)
from backplane.otp.cluster import Cluster, FarProcessError, _has_cancellation

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from otp.cluster_world import (
        SECRET,
        Side,
        collect,
        connect,
        cut,
        deaf,
        idle,
        pair,
        part,
        settled,
        side,
        sides,
        until,
    )  # fmt: skip
else:
    from .cluster_world import (
        SECRET,
        Side,
        collect,
        connect,
        cut,
        deaf,
        idle,
        pair,
        part,
        settled,
        side,
        sides,
        until,
    )  # fmt: skip

pytestmark = pytest.mark.anyio
in_virtual_time = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


def ids(pids: list[Pid]) -> Counter[Any]:
    """Who is in a list, and how often; on whatever node it is made."""
    return Counter(pid.id for pid in pids)


def service(here: Side, there: Side) -> Line:
    """The cluster of another node, as one of them has it."""
    line = here.cluster._neighbours[there.node.name].line
    assert line is not None
    return line


# -- pids -------------------------------------------------------------------------------------


async def test_the_same_process_is_one_pid_however_it_came() -> None:
    async with sides("a", "b", "c") as (a, b, c):
        pid = b.scope.spawn(deaf)
        b.registry.register("name", None, pid)
        b.groups.join("group", pid)
        got: list[Any] = []
        here = a.scope.spawn(collect, got)

        by_name = await a.cluster.await_name("name", 20)
        await until(lambda: a.groups.members("group"))
        by_group = a.groups.members("group")[0]
        b.see(a, here).send(["from home", pid])
        c.see(a, here).send(["by a third", c.see(b, pid)])
        await until(lambda: len(got) == 2)

        everyone = [by_name, by_group, got[0][1], got[1][1], a.see(b, pid)]
        assert set(everyone) == {by_name}
        assert {hash(each) for each in everyone} == {hash(by_name)}
        assert by_name != pid
        assert by_name.id == pid.id
        assert repr(by_name) == f"{repr(pid)[:-1]} on b>"
        assert by_name != c.see(b, pid)  # of another node, though in the same program


async def test_a_pid_that_comes_home_is_the_local_one() -> None:
    async with sides("a", "b", "c") as (a, b, c):
        pid = a.scope.spawn(deaf)

        assert a.see(b, b.see(a, pid)) == pid
        assert a.see(c, c.see(b, b.see(a, pid))) == pid

        far = b.see(a, pid)
        pid.exit("gone")
        await pid.wait()
        assert a.see(b, far) == pid  # as long as anybody has it
        packed = b.node.encode(far)
        dead = pid.id
        del pid
        await far.wait()
        again = a.node.decode(packed)
        assert again.id == dead
        assert again.reason is not None


async def test_a_pid_is_sent_on_also_by_a_node_that_cannot_reach_it() -> None:
    async with side("a") as a, side("b") as b, side("c") as c:
        await connect(a, b)
        await connect(b, c)
        got: list[Any] = []
        pid = a.scope.spawn(collect, got)

        by_c = c.see(b, b.see(a, pid))
        assert not by_c.alive
        assert by_c.reason is NOCONNECTION
        assert not by_c.send("nobody hears")
        assert c.see(b, b.see(a, pid)) == by_c
        with pytest.raises(ServerDownError) as caught:
            await call(by_c, "x")
        assert caught.value.reason is NOCONNECTION

        assert b.see(c, by_c) == b.see(a, pid)  # straight again
        assert a.see(b, b.see(c, by_c)) == pid
        await connect(a, c)
        assert [by_c.reason, by_c.alive] == [None, True]
        assert c.see(b, b.see(a, pid)) == by_c
        assert await by_c.wait_send("hello")
        assert got == ["hello"]


async def ask_in_vain(pid: Pid) -> set[Any]:
    """What those hear who ask for a process that cannot be reached."""
    me = current_process()
    me.trap_exit = True
    me.link(pid)
    heard = {(await me.receive(Exited, timeout=20)).reason}
    ref = me.monitor(pid)
    heard.add((await me.receive(lambda it: it.ref is ref, timeout=20)).reason)
    assert not me.links
    assert not pid.send("x")
    assert not await pid.wait_send("x")
    for request in (call(pid, "x"), stop(pid)):
        with pytest.raises(ServerDownError) as caught:
            await request
        assert not caught.value.begun
        heard.add(caught.value.reason)
    return heard


async def test_a_pid_reaches_its_process_again_when_there_is_a_connection_again() -> None:
    async with side("a") as a, side("b") as b:
        address = await b.node.listen("tcp://127.0.0.1:0")
        await a.node.connect(address)
        await a.cluster.await_node("b", 20)
        got: list[Any] = []
        pid, ends = b.scope.spawn(collect, got), b.scope.spawn(deaf)
        far, other = a.see(b, pid), a.see(b, ends)
        known = {far: "it may be a key"}
        for lose in (cut, part, cut):
            heard: list[Any] = []
            async with anyio.create_task_group() as tg:

                async def wait_for_it(heard: list[Any] = heard) -> None:
                    heard.append(await far.wait())

                tg.start_soon(wait_for_it)
                await until(lambda: far._process._heralds)
                if (lost := lose(a, b)) is not None:
                    await lost
            assert heard == [NOCONNECTION]
            assert {far.reason, await far.wait()} == {NOCONNECTION}
            assert await a.run(ask_in_vain, far) == {NOCONNECTION}

            await until(lambda: not b.is_with(a))
            await a.node.connect(address)
            await a.cluster.await_node("b", 20)

            assert far.alive
            assert far.reason is None
            assert known[a.see(b, pid)]
            assert await far.wait_send(lose.__name__)
        assert got == ["cut", "part", "cut"]

        ends.exit("meanwhile")
        for _ in range(2):
            cut(a, b)
            await ends.wait()
            await until(lambda: not b.is_with(a))
            await a.node.connect(address)
            await a.cluster.await_node("b", 20)
            assert await other.wait() is NOPROC
        assert await a.run(ask_in_vain, other) == {NOPROC}
        pid.exit("a value")
        assert await far.wait() == "a value"
        assert await a.run(ask_in_vain, far) == {NOPROC}


async def test_a_node_that_many_are_known_of_is_asked_for_them_no_faster_than_it_hears() -> None:
    limits = Limits(frame=4096, outbox=8192, outbox_hard=24_000)
    async with side("a", limits=limits) as a, side("b", limits=limits) as b:
        pids = [b.scope.spawn(deaf) for _ in range(1000)]
        for pid in pids:
            b.groups.join("g", pid)
        await connect(a, b)
        await until(lambda: len(a.groups.members("g")) == 1000)
        held = a.groups.members("g")

        cut(a, b)
        await connect(a, b)

        assert {far.reason for far in held} == {None}
        pids[0].exit("a value")
        pids[-1].exit("another")
        await until(lambda: len(a.groups.members("g")) == 998)
        assert {far.reason for far in held} == {None, "a value", "another"}


async def test_what_is_urgent_waits_while_a_node_is_slow() -> None:
    async with sides("a", "b") as (a, b):
        session = a.node.peer("b")._session
        session.outbox.waiting += 2 << 20  # as if all this waited to be written
        pid = b.scope.spawn(deaf)

        far = a.see(b, pid)
        await settled()
        assert not pid._process._heralds
        session.outbox.waiting -= 2 << 20
        session.outbox.room.open()
        await until(lambda: pid._process._heralds)
        pid.exit("a value")
        assert await far.wait() == "a value"
        a.cluster._neighbours["b"].urge([object()])  # has no form; harms nobody


@pytest.mark.heavy
async def test_a_cluster_that_ends_while_much_is_told_to_it_costs_no_connection() -> None:
    async with side("a") as a, Node("b", secret=SECRET) as node:
        here, there = pair()
        held: Any = Held(there)
        async with Cluster(node) as cluster:
            async with anyio.create_task_group() as tg:
                tg.start_soon(lambda: node.attach(held, dial=False))
                await a.node.attach(here, dial=True)
            await a.cluster.await_node("b", 20)
            await cluster.await_node("a", 20)
            held.hold()
        session = node.peer("a")._session
        before, pid = session.frames_in, a.scope.spawn(deaf)
        for _ in range(2000):
            a.groups.join("g", pid)
        await until(lambda: session.frames_in >= before + 2000)
        held.go_on()
        await until(lambda: not a.cluster._neighbours)
        assert a.node.peers()


async def test_who_waits_for_an_end_hears_of_the_loss_though_it_lives_when_he_looks() -> None:
    async with sides("a", "b") as (a, b):
        far = a.see(b, b.scope.spawn(deaf))
        heard: list[Any] = []

        async def wait_for_it() -> None:
            heard.append(await far.wait())

        async with anyio.create_task_group() as tg:
            tg.start_soon(wait_for_it)
            await until(lambda: far._process._heralds)
            process: Any = far._process
            process.lose()
            assert not process.regain(process.line())  # there is no other way to it
            assert process.regain(Outpost.open(far.id, None, deque(), QUIET)[1])
            assert not process.regain(process.line())
            assert far.alive
        assert heard == [NOCONNECTION]
        with anyio.move_on_after(0.01):
            await far.wait()
        assert not process._heralds


async def test_a_pid_is_not_that_of_a_new_node_of_the_same_name() -> None:
    async with side("a") as a, side("c") as c:
        await connect(a, c)
        async with side("b") as b:
            await connect(a, b)
            old = a.see(b, b.scope.spawn(deaf))
            packed = a.node.encode(old)
        await until(lambda: [peer.name for peer in a.node.peers()] == ["c"])
        assert a.node.decode(packed) == old
        assert await a.run(ask_in_vain, old) == {NOCONNECTION}
        assert c.node.decode(packed).reason is NOCONNECTION
        async with side("b") as b:
            await connect(a, b)

            assert a.node.decode(packed) == old
            assert not old.alive
            assert await a.run(ask_in_vain, old) == {NOPROC}
            assert b.node.decode(packed).reason is NOPROC
            await connect(b, c)
            assert c.node.decode(packed).reason is NOPROC
        assert await a.run(ask_in_vain, old) == {NOPROC}


# -- names --------------------------------------------------------------------------------------


async def test_names_are_told_as_they_are_and_as_they_change() -> None:
    async with side("a") as a, side("b") as b:
        first, second = b.scope.spawn(deaf), b.scope.spawn(deaf)
        b.registry.register("early", None, first)
        b.registry.register("twice", None, first)
        await connect(a, b)

        assert a.cluster.whereis("early") == a.see(b, first)
        assert a.cluster.whereis("nobody") is None
        b.registry.register("late", None, second)
        assert await a.cluster.await_name("late", 20) == a.see(b, second)
        for _ in range(20):
            b.registry.unregister("twice", first)
            b.registry.register("twice", None, second)
            b.registry.unregister("twice", second)
            b.registry.register("twice", None, first)
        b.registry.unregister("early", first)
        b.registry.register("last", None, first)
        await a.cluster.await_name("last", 20)

        assert a.cluster.whereis("early") is None
        assert a.cluster.whereis("twice") == a.see(b, first)
        first.exit("ends")
        await until(lambda: a.cluster.whereis("twice") is None)
        assert a.cluster.holders("last") == {}
        assert a.cluster.holders("late") == {"b": a.see(b, second)}


async def test_two_nodes_may_have_the_same_name_and_nobody_is_killed() -> None:
    async with sides("a", "b", "c") as (a, b, c):
        pids = {each.node.name: each.scope.spawn(deaf) for each in (a, b, c)}
        for each in (c, b):
            each.registry.register("name", None, pids[each.node.name])
        await until(lambda: len(a.cluster.holders("name")) == 2)

        assert a.cluster.whereis("name") == a.see(b, pids["b"])
        assert c.cluster.whereis("name") == pids["c"]  # one's own goes first
        a.registry.register("name", None, pids["a"])
        assert a.cluster.whereis("name") == pids["a"]
        assert set(a.cluster.holders("name")) == {"a", "b", "c"}
        assert all(pid.alive for pid in pids.values())


async def test_what_is_no_short_string_is_no_name_for_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with sides("a", "b") as (a, b):
        registry: Registry[Any, Any] = b.registry
        pid = b.scope.spawn(deaf)
        for key in (1, ("x", "y"), None, "x" * 256, "\ud800"):
            registry.register(key, None, pid)
            b.groups.join(key, pid)
        registry.register("x" * 255, None, pid)
        b.groups.join("x" * 255, pid)

        await a.cluster.await_name("x" * 255, 20)
        await until(lambda: a.groups.members("x" * 255))

        assert list(a.cluster._neighbours["b"].names) == ["x" * 255]
        assert a.groups.which_groups() == ["x" * 255]
        assert "node 'b': 'a' was not told" in caplog.text
        async with side("c") as c:  # the same, all at once
            await connect(c, b)
            assert list(c.cluster._neighbours["b"].names) == ["x" * 255]
            assert c.groups.which_groups() == ["x" * 255]


async def test_more_names_than_a_frame_holds_are_told() -> None:
    limits = Limits(frame=4096, outbox=8192)
    async with side("a", limits=limits) as a, side("b", limits=limits) as b:
        pids = [b.scope.spawn(deaf) for _ in range(300)]
        for number, pid in enumerate(pids):
            b.registry.register(f"name {number} {'x' * 200}", None, pid)
            b.groups.join(f"group {number % 7}", pid)

        await connect(a, b)

        assert len(a.cluster._neighbours["b"].names) == 300
        assert sum(len(a.groups.members(group)) for group in a.groups.which_groups()) == 300


@in_virtual_time
async def test_waiting_for_names_and_nodes() -> None:
    async with side("a") as a, side("b") as b:
        found: dict[str, Any] = {}

        async def wait(key: str, who: Side) -> None:
            found[key] = await who.cluster.await_name(key)

        began = anyio.current_time()
        with pytest.raises(TimeoutError, match="cluster of a: nobody has been 'x'"):
            await a.cluster.await_name("x", 3)
        with pytest.raises(TimeoutError, match="cluster of a: node 'b' is not connected"):
            await a.cluster.await_node("b", 2)
        with pytest.raises(TimeoutError):
            await a.cluster.await_name("x", 0)
        assert anyio.current_time() - began == 5

        async with anyio.create_task_group() as tg:
            tg.start_soon(wait, "mine", a)
            tg.start_soon(wait, "theirs", a)
            await anyio.sleep(1)
            a.registry.register("mine", None, a.scope.spawn(deaf))
            b.registry.register("theirs", None, b.scope.spawn(deaf))
            await anyio.sleep(1)
            assert set(found) == {"mine"}
            await connect(a, b)
        assert set(found) == {"mine", "theirs"}
        assert not a.cluster._changed


@in_virtual_time
async def test_a_node_that_has_no_cluster_has_not_said_what_it_has() -> None:
    async with side("a") as a, Node("b", secret=SECRET) as b:
        here, there = pair()
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: b.attach(there, dial=False))
            await a.node.attach(here, dial=True)

        with pytest.raises(TimeoutError, match="cluster of a: node 'b' has not said what it has"):
            await a.cluster.await_node("b", 2)


def test_a_registry_of_duplicate_keys_has_no_names_for_nodes() -> None:
    with pytest.raises(ValueError, match="registry 'many' keeps duplicate keys"):
        Cluster(Node("a", secret=SECRET), registry=Registry("many", duplicate=True))


async def test_a_cluster_without_a_registry_knows_the_names_of_others() -> None:
    async with (
        side("b") as b,
        Node("a", secret=SECRET) as node,
        Cluster(node) as cluster,
    ):
        b.registry.register("name", None, b.scope.spawn(deaf))
        here, there = pair()
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: b.node.attach(there, dial=False))
            await node.attach(here, dial=True)

        found = await cluster.await_name("name", 20)

        assert cluster.holders("name") == {"b": found}
        assert cluster.via("name").whereis() == found
        assert repr(cluster) == "<Cluster of 'a' with ['b']>"


# -- groups ---------------------------------------------------------------------------------------


async def test_members_of_all_nodes_are_in_a_group_as_often_as_they_have_joined() -> None:
    async with side("a") as a, side("b") as b:
        near, far = a.scope.spawn(deaf), b.scope.spawn(deaf)
        for _ in range(3):
            b.groups.join("g", far)
        a.groups.join("g", near)
        await connect(a, b)

        assert ids(a.groups.members("g")) == ids(b.groups.members("g")) == {far.id: 3, near.id: 1}
        assert a.groups.local_members("g") == [near]
        for _ in range(50):
            b.groups.join("g", far)
            b.groups.leave("g", far)
            b.groups.leave("g", far)
            b.groups.join("g", far)
        b.groups.leave("g", far)
        b.groups.join("done", far)
        await until(lambda: a.groups.members("done"))
        assert ids(a.groups.members("g")) == {far.id: 2, near.id: 1}

        far.exit("ends")
        await until(lambda: a.groups.which_groups() == ["g"])
        await until(lambda: not a.cluster._neighbours["b"]._members)
        assert a.groups.members("g") == [near]


async def test_a_member_far_away_gets_what_is_published_once() -> None:
    async with sides("a", "b") as (a, b):
        got: list[Any] = []
        far = b.scope.spawn(collect, got)
        b.groups.join("g", far)
        b.groups.join("g", far)
        await until(lambda: len(a.groups.members("g")) == 2)

        assert a.groups.publish("g", "hello") == 1

        await until(lambda: got)
        await settled()
        assert got == ["hello"]


async def test_nobody_gets_what_cannot_be_sent_to_all() -> None:
    small = Limits(frame=4096, outbox=8192)
    async with side("a") as a, side("b") as b, side("c", limits=small) as c:
        await connect(a, b)
        await connect(a, c)
        got: list[Any] = []
        for each in (a, b, c):
            for _ in range(2):
                each.groups.join("g", each.scope.spawn(collect, got))
        await until(lambda: len(a.groups.members("g")) == 6)

        for wrong in (object(), [1, {"x": object()}], "\ud800", b"x" * 5000, b"x" * 2**21):
            with pytest.raises(EncodeError):
                a.groups.publish("g", wrong)
        assert a.groups.publish("g", "this") == 6

        await until(lambda: len(got) == 6)
        assert got == ["this"] * 6


async def test_what_is_published_is_encoded_once() -> None:
    class Word:
        pass

    packed: list[Word] = []

    def pack(word: Word) -> bytes:
        packed.append(word)
        return b"word"

    async with sides("a", "b", "c") as (a, b, c):
        for each in (a, b, c):
            codec: Any = each.node.codec
            codec.add(Word, 99, pack, lambda data: data.decode())
        got: list[Any] = []
        for each in (b, c):
            for _ in range(5):
                each.groups.join("g", each.scope.spawn(collect, got))
        await until(lambda: len(a.groups.members("g")) == 10)

        word = Word()
        assert a.groups.publish("g", ["a", word]) == 10
        await until(lambda: len(got) == 10)

        assert packed == [word]
        assert got == [["a", "word"]] * 10


async def test_those_on_slow_and_lost_nodes_are_left_out_and_keep_it_from_nobody() -> None:
    async with sides("a", "b", "c", "d") as made:
        a, b, c, d = made
        got: dict[str, list[Any]] = {name: [] for name in "abcd"}
        for count, each in enumerate((d, c, b, a)):
            await until(lambda count=count: len(a.groups.members("g")) == count)  # type: ignore[misc]
            each.groups.join("g", each.scope.spawn(collect, got[each.node.name]))
        session = a.node.peer("c")._session
        session.outbox.waiting += 2 << 20  # as if all this waited to be written

        a.node.peer("d").close()
        assert a.groups.publish("g", "first") == 2
        session.outbox.waiting -= 2 << 20
        await until(lambda: not a.is_with(d))
        assert a.groups.publish("g", "second") == 3

        await until(lambda: got["c"] and len(got["b"]) == 2)
        assert got == {"a": got["b"], "b": ["first", "second"], "c": ["second"], "d": []}


async def test_of_changes_here_no_process_elsewhere_hears() -> None:
    async with sides("a", "b") as (a, b):
        far = a.see(b, b.scope.spawn(deaf))
        near = a.scope.spawn(deaf)

        for listen in (a.groups.monitor_all, a.registry.subscribe):
            with pytest.raises(FarProcessError):
                listen(far)
        with pytest.raises(FarProcessError):
            a.groups.monitor("g", far)
        a.groups.join("g", near)
        a.registry.register("name", None, near)

        assert a.groups.members("g") == [near]
        assert near.alive


async def test_one_that_ends_as_it_is_told_of_is_nowhere_at_rest() -> None:
    async with sides("a", "b") as (a, b):
        for number in range(100):
            pid = b.scope.spawn(idle)
            b.groups.join("g", pid)
            b.registry.register("name", None, pid)
            pid.exit("at once")
            if number % 10 == 0:
                await pid.wait()
            b.registry.unregister("name", pid)
        last = b.scope.spawn(deaf)
        b.registry.register("last", None, last)

        await a.cluster.await_name("last", 20)
        await until(lambda: not a.groups.which_groups())

        assert a.cluster.whereis("name") is None
        assert a.cluster._neighbours["b"]._members == {}
        assert list(a.cluster._neighbours["b"].names) == ["last"]


@pytest.mark.parametrize("how", [part, cut], ids=["closed", "lost"])
async def test_all_of_a_lost_node_is_gone_before_its_loss_is_told(how: Any) -> None:
    async with sides("a", "b") as (a, b):
        pids = [b.scope.spawn(deaf) for _ in range(20)]
        for number, pid in enumerate(pids):
            b.groups.join("g", pid)
            b.registry.register(f"name {number}", None, pid)
        watcher = a.scope.spawn(deaf)
        await a.cluster.await_name("name 19", 20)
        await until(lambda: len(a.groups.members("g")) == 20)
        seen = a.groups.members("g")
        for each in seen:
            watcher._process.monitor(each)
        told: list[Any] = []

        def hear(event: Any) -> None:
            told.append(
                (
                    type(event),
                    a.groups.members("g"),
                    [a.cluster.whereis(f"name {number}") for number in range(20)],
                    {each.reason for each in seen},
                    {each.reason for each in watcher._process.mailbox},
                    len(watcher._process.mailbox),
                )
            )

        a.node.subscribe(hear)
        result = how(a, b)
        if result is not None:
            await result

        assert told == [(NodeDown, [], [None] * 20, {NOCONNECTION}, {NOCONNECTION}, 20)]
        assert a.cluster._neighbours == {}
        await connect(a, b)
        assert len(a.groups.members("g")) == 20
        assert a.cluster.whereis("name 7") == a.see(b, pids[7])
        assert len(watcher._process.mailbox) == 20


async def test_after_a_reconnection_exactly_what_there_is_now_is_known() -> None:
    async with sides("a", "b") as (a, b):
        stays, goes, comes = (b.scope.spawn(deaf) for _ in range(3))
        for pid in (stays, goes):
            b.groups.join("g", pid)
            b.registry.register(f"name {pid.id.serial}", None, pid)
        await until(lambda: len(a.groups.members("g")) == 2)

        cut(a, b)
        goes.exit("meanwhile")
        await goes.wait()
        b.groups.join("g", comes)
        b.groups.join("g", comes)
        b.registry.unregister(f"name {stays.id.serial}", stays)
        b.registry.register("new", None, comes)
        await connect(a, b)

        assert ids(a.groups.members("g")) == {stays.id: 1, comes.id: 2}
        assert list(a.cluster._neighbours["b"].names) == ["new"]


async def test_a_node_that_is_restarted_under_its_name_is_known_with_what_it_has_now() -> None:
    async with side("a") as a:
        async with side("b") as b:
            old = b.scope.spawn(deaf)
            b.groups.join("g", old)
            b.registry.register("name", None, old)
            await connect(a, b)
            was = a.cluster.whereis("name")
            assert was is not None
            a.node.peer("b").close()  # of two that live, the second would be refused
            await until(lambda: not a.node.peers())
            async with side("b") as new:
                pid = new.scope.spawn(deaf)
                new.registry.register("name", None, pid)
                new.groups.join("g", pid)
                await connect(a, new, known=False)
                await until(lambda: a.cluster.whereis("name") == a.see(new, pid))

                assert was.reason is NOCONNECTION
                await until(lambda: ids(a.groups.members("g")) == {pid.id: 1})
        await until(lambda: not a.cluster._neighbours)
        assert a.groups.which_groups() == []


async def test_two_nodes_of_one_name_are_not_connected() -> None:
    async with side("a") as first, side("a") as second:
        with pytest.raises((AuthError, NotConnectedError, ExceptionGroup)):
            await connect(first, second)

        assert not first.cluster._neighbours
        assert not second.cluster._neighbours


# -- meeting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["a", "b"])
@in_virtual_time
async def test_clusters_meet_also_if_one_is_made_long_after_the_connection(first: str) -> None:
    async with Node("a", secret=SECRET) as a, Node("b", secret=SECRET) as b:
        here, there = pair()
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: b.attach(there, dial=False))
            await a.attach(here, dial=True)
        early, late = (a, b) if first == "a" else (b, a)
        async with Cluster(early) as one:
            with pytest.raises(TimeoutError):
                await one.await_node(late.name, 1000)
            async with Cluster(late) as other:
                await other.await_node(early.name, 5)
                await one.await_node(late.name, 5)


async def test_a_cluster_that_speaks_while_it_is_looked_for_in_vain_is_looked_for_again() -> None:
    async with side("a") as a, Node("b", secret=SECRET) as node:
        here, there = pair()
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: node.attach(there, dial=False))
            await a.node.attach(here, dial=True)
        line = await node.peer("a").find("backplane.otp")
        device = Device()
        heard: list[Any] = []

        class Port:
            def tell(self, message: Any) -> None:
                heard.append(message.open()[0])

            def call(self, request: Any) -> None:
                raise AssertionError

        a.cluster._on_node(NodeUp("b", b""))
        assert not heard
        tell(line, ["hello"])
        tell(line, ["said"])
        node.export("backplane.otp", device, port=Port())
        await a.cluster.await_node("b", 20)

        await until(lambda: heard == ["hello", "said"])


async def test_when_a_cluster_ends_before_its_node_others_lose_what_it_had() -> None:
    async with side("a") as a, Node("b", secret=SECRET) as node:
        here, there = pair()
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: node.attach(there, dial=False))
            await a.node.attach(here, dial=True)
        names: Registry[str, Any] = Registry()
        async with Cluster(node, registry=names) as cluster:
            mine = a.scope.spawn(deaf)
            pid = a.scope.spawn(deaf)  # of no node yet: it is of the one that sends it
            names.register("name", None, pid)
            cluster.groups.join("g", pid)
            far = await a.cluster.await_name("name", 20)
            await until(lambda: a.groups.members("g"))
            seen = node.decode(a.node.encode(mine))
            await settled()

        assert seen.reason is NOCONNECTION
        assert await far.wait() is NOCONNECTION
        assert pid.alive
        assert a.groups.which_groups() == []
        assert a.cluster.whereis("name") is None
        await until(lambda: not a.cluster._neighbours)
        assert node.peers()
        for each in (mine, a.scope.spawn(deaf)):
            assert node.decode(a.node.encode(each)).reason is NOCONNECTION
        assert a.node.decode(a.node.encode(far)) == far
        assert far.reason is NOCONNECTION
        with pytest.raises(RuntimeError, match="a cluster lives in one block"):
            await cluster.__aenter__()
        with pytest.raises(EndedError):
            await ask(far.line(), ["k", "nobody takes this"])


async def test_the_block_of_a_cluster_has_no_scope_of_its_own_and_hands_errors_on() -> None:
    async with Node("a", secret=SECRET) as node:
        error: Exception | None = None
        try:
            async with Cluster(node):
                with pytest.raises(ScopeError):
                    current_scope()
                raise ZeroDivisionError
        except Exception as caught:
            error = caught
        assert type(error) is ZeroDivisionError
    async with Node("b", secret=SECRET) as node:
        with anyio.CancelScope() as scope:
            async with Cluster(node):
                scope.cancel()
                await anyio.sleep(1)
        assert scope.cancelled_caught


async def test_a_node_and_its_cluster_may_live_in_a_process() -> None:
    class Counter_(GenServer):  # noqa: N801
        def handle_call(self, message: Any, from_: Any) -> Any:
            return from_.sender is None

    async with side("b") as b:
        ref = await start(Counter_, scope=b.scope)
        b.registry.register("counter", None, ref.pid)

        async def inside() -> bool:
            async with Node("a", secret=SECRET) as node, Cluster(node) as cluster:
                here, there = pair()
                async with anyio.create_task_group() as tg:
                    tg.start_soon(lambda: b.node.attach(there, dial=False))
                    await node.attach(here, dial=True)
                me = current_process()
                far = await cluster.await_name("counter", 20)
                assert await call(far, "x")
                ref = me.monitor(far)
                me.trap_exit = True
                node.peer("b").close()
                assert await me.receive(timeout=20) == Down(ref, far, NOCONNECTION)
                return True

        assert await b.run(inside)


@in_virtual_time
async def test_a_node_that_is_slow_to_answer_is_asked_again() -> None:
    async with side("a") as a, Node("b", secret=SECRET) as node:
        names: Registry[str, Any] = Registry()
        here, there = pair()
        held: Any = Held(there)
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: node.attach(held, dial=False))
            await a.node.attach(here, dial=True)
        held.hold()
        async with Cluster(node, registry=names) as cluster:
            a.cluster._on_node(NodeUp("b", b""))
            await anyio.sleep(7)
            assert [peer.name for peer in a.cluster._meeting] == ["b"]
            held.go_on()
            await a.cluster.await_node("b", 5)
            await cluster.await_node("a", 5)


class Held:
    """A stream whose other end is not heard for a while."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._free = anyio.Event()
        self._free.set()

    def hold(self) -> None:
        self._free = anyio.Event()

    def go_on(self) -> None:
        self._free.set()

    async def send(self, item: bytes) -> None:
        await self._free.wait()
        await self._stream.send(item)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


async def test_a_slow_node_keeps_no_other_from_being_told() -> None:
    limits = Limits(outbox=4096, frame=4096)
    async with side("a", limits=limits) as a, side("b") as b, side("c") as c:
        await connect(a, b)
        here, there = pair()
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: c.node.attach(there, dial=False))
            await a.node.attach(here, dial=True)
        await a.cluster.await_node("c", 20)
        await c.cluster.await_node("a", 20)
        session = a.node.peer("c")._session
        session.outbox.waiting += 10_000  # as if all this waited to be written
        pid = a.scope.spawn(deaf)

        a.registry.register("name", None, pid)
        await b.cluster.await_name("name", 20)
        assert c.cluster.whereis("name") is None
        session.outbox.waiting -= 10_000
        session.outbox.room.open()  # as one does that has written
        await c.cluster.await_name("name", 20)

        session.outbox.waiting += 10_000
        a.registry.register("another", None, pid)
        await settled()
        cut(a, c)
        await b.cluster.await_name("another", 20)
        await until(lambda: "c" not in a.cluster._neighbours)


# -- lies and garbage -----------------------------------------------------------------------------


async def test_what_no_cluster_says_is_logged_rarely_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "backplane.otp")
    async with sides("a", "b", "c") as (a, b, c):
        pid, others = b.scope.spawn(deaf), c.scope.spawn(deaf)
        b.registry.register("name", None, pid)
        b.groups.join("g", pid)
        await a.cluster.await_name("name", 20)
        await until(lambda: a.groups.members("g"))
        of_c, of_a = b.see(c, others), b.see(a, a.scope.spawn(deaf))
        line = service(b, a)
        lies: list[Any] = [
            1, "hello", {}, [], ["unknown"], ["hello", 1], ["names"], ["names", 1],
            ["names", [1]], ["names", [["x"]]], ["names", [["x", 1]]], ["names", [[1, pid]]],
            ["names", [["x", pid, 1]]], ["names", [["x" * 256, pid]]], ["names", [["x", of_c]]],
            ["names", [["x", of_a]]], ["members", [["x", of_c]]], ["members", [["x", of_a]]],
            ["members", [["x", 1]]], ["members", [["x" * 256, pid]]], ["left", "g"],
            ["left", "g", pid], ["left", 1, pid.id], ["free"], ["free", 1], ["D"],
            ["D", 1, NORMAL], ["D", pid, NORMAL], ["w"], ["w", 1, line], ["w", b"x", 1],
            ["w", b"x", line], ["w", [1], line],
            msgspec.msgpack.Ext(99, b"x"), [msgspec.msgpack.Ext(16, b"\1")],
            [msgspec.msgpack.Ext(17, b"\xc1")], [msgspec.msgpack.Ext(1, b"no line")],
        ]  # fmt: skip
        for lie in lies:
            tell(line, lie)
        harmless: list[Any] = [
            ["left", "g", of_c.id], ["left", "nobody is here", pid.id], ["free", "nobody"],
            ["D", b"nobody", NORMAL], ["w", [b"nobody"], line], ["said"], ["said"],
        ]  # fmt: skip
        for each in harmless:
            tell(line, each)
        b.registry.register("after", None, pid)
        await a.cluster.await_name("after", 20)

        neighbour = a.cluster._neighbours["b"]
        assert set(neighbour.names) == {"name", "after"}
        assert a.groups.which_groups() == ["g"]
        refused = a.cluster._pids._complaints["b"]
        assert refused == len(lies)
        assert caplog.text.count("was refused") == 6  # the 1., 2., 4., 8., 16. and 32.
        with pytest.raises(RemoteError, match="a cluster answers no requests"):
            await ask(line, ["hello"])


async def test_a_node_ends_no_process_of_others() -> None:
    async with sides("a", "b", "c") as (a, b, c):
        victim = c.scope.spawn(deaf)
        seen = a.see(c, victim)
        address = seen._process.address  # type: ignore[attr-defined]

        tell(service(b, a), ["D", address, "a lie"])
        tell(service(b, a), ["D", b.see(c, victim)._process.address, "a lie"])  # type: ignore[attr-defined]
        await settled()

        assert seen.alive
        victim.exit("the truth")
        assert await seen.wait() == "the truth"


async def test_a_reason_that_is_none_is_no_reason() -> None:
    async with sides("a", "b") as (a, b):
        seen = a.see(b, b.scope.spawn(deaf))

        tell(service(b, a), ["D", seen._process.address, None])  # type: ignore[attr-defined]

        assert await seen.wait() is NOPROC


async def test_a_second_greeting_makes_the_first_one_void() -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(deaf)
        b.registry.register("name", None, pid)
        for _ in range(2):
            b.groups.join("g", pid)
        await a.cluster.await_name("name", 20)
        await until(lambda: len(a.groups.members("g")) == 2)

        line = service(b, a)
        for each in (["hello"], ["members", [["g", pid]]], ["said"]):
            tell(line, each)
        await until(lambda: len(a.groups.members("g")) == 1)

        assert a.cluster.whereis("name") is None


async def test_a_node_tells_of_so_many_names_and_members_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_neighbours, "_MOST", 100)
    async with sides("a", "b") as (a, b):
        pids = [b.scope.spawn(deaf) for _ in range(150)]
        for number, pid in enumerate(pids):
            b.registry.register(f"name {number}", None, pid)
            b.groups.join("g", pid)
        for _ in range(150):
            b.groups.join("h", pids[0])

        await until(lambda: a.cluster._pids._complaints["b"] == 250)

        neighbour = a.cluster._neighbours["b"]
        assert len(neighbour.names) == 100
        assert sum(len(a.groups.members(group)) for group in a.groups.which_groups()) == 100


ENVELOPES: list[Any] = [
    1, None, "m", {}, [], ["m"], ["m", 1, 2], ["unknown", 1], ["c"], ["C"], ["C", 1, [], {}],
    ["C", "x", {}, {}], ["C", "x", [], []], ["x"], ["x", 1, NORMAL], ["x", None, None], ["s"],
    ["s", None], ["d", 1], ["l", 1], ["u", 1], ["w", Device().line()], ["k", 1], ["q", 1],
    [msgspec.msgpack.Ext(99, b"x")], ["m", msgspec.msgpack.Ext(99, b"x")],
    ["m", msgspec.msgpack.Ext(16, b"")],
]  # fmt: skip


async def test_envelopes_of_no_known_kind_harm_no_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with sides("a", "b") as (a, b):
        got: list[Any] = []
        pid = b.scope.spawn(collect, got)
        far = a.see(b, pid)

        for envelope in ENVELOPES:
            tell(far.line(), envelope)
        for envelope in (*(each for each in ENVELOPES if each not in (["k", 1], ["q", 1])), []):
            with pytest.raises(RemoteError):
                await ask(far.line(), envelope)
        await far.wait_send("still here")

        assert got == ["still here"]
        assert a.node.peers()
        assert f"a message from 'a' to {pid!r} was refused" in caplog.text


async def test_a_node_speaks_for_its_own_processes_only() -> None:
    async with sides("a", "b", "c") as (a, b, c):
        target = b.scope.spawn(deaf, trap_exit=True)
        mine, others = a.scope.spawn(deaf), a.see(c, c.scope.spawn(deaf))
        own = a.see(b, b.scope.spawn(deaf))
        line = a.see(b, target).line()

        for stranger in (others, own):
            for envelope in (["x", stranger, "lie"], ["l", stranger], ["u", stranger]):
                tell(line, envelope)
        tell(line, ["x", mine, "truth"])
        await until(lambda: target._process.mailbox)

        assert [each.reason for each in target._process.mailbox] == ["truth"]
        assert not target._process.links
        assert b.cluster._pids._complaints["a"] == 6
        tell(line, ["u", mine])  # of no link
        target._process.end("ends")
        tell(line, ["l", mine])
        await settled()
        assert not target._process._links


def forged(line: Line, **changes: Any) -> bytes:
    """The bytes of a pid that its node never gave."""
    outpost = outpost_of(line)
    assert outpost is not None
    wire = msgspec.structs.replace(outpost.key.line, **changes)
    return b"\1" + msgspec.msgpack.encode(wire)


@pytest.mark.parametrize("rights", [0, Right.ALL.value - 4, Right.ALL.value - 8, 1 << 40])
async def test_a_pid_that_may_not_be_linked_or_shut_down_is_none(rights: int) -> None:
    async with sides("a", "b") as (a, b):
        device = Device()
        a.node.export("device", device, rights=Right.ALL)
        line = await b.node.peer("a").find("device")
        lie = msgspec.msgpack.Ext(16, forged(line, rights=rights, token=b"x" * TOKEN))

        with pytest.raises(PayloadError, match="a pid that cannot be linked or shut down"):
            b.node.decode(msgspec.msgpack.encode(lie))


async def test_who_an_unknown_token_leads_to_is_nobody() -> None:
    async with sides("a", "b", "c") as (a, b, c):
        mine, theirs = a.scope.spawn(deaf), c.scope.spawn(deaf)
        seen = b.see(a, mine)
        ext = msgspec.msgpack.Ext

        lie = a.node.decode(
            msgspec.msgpack.encode(ext(16, forged(seen.line(), token=b"x" * TOKEN)))
        )
        assert lie != mine
        assert lie.reason is NOPROC

        of_c = forged(b.see(c, theirs).line(), token=b"x" * TOKEN)
        lie = a.node.decode(msgspec.msgpack.encode(ext(16, of_c)))
        truth = a.see(c, theirs)
        assert lie != truth
        assert await lie.wait() is NOPROC
        assert truth.alive
        with pytest.raises(ServerDownError):
            await call(lie, "x")


async def test_a_line_to_what_is_no_process_is_no_pid() -> None:
    async with sides("a", "b") as (a, b):
        device = Device()
        a.node.export("device", device, rights=Right.ALL)
        line = await b.node.peer("a").find("device")

        with pytest.raises(Exception, match="a pid of what is no process"):
            a.node.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(16, forged(line))))


async def test_a_call_to_what_was_revoked_is_one_to_nobody() -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(deaf)
        far = a.see(b, pid)
        await call_times_out(far)
        b.node.revoke(pid.line())

        with pytest.raises(ServerDownError) as caught:
            await call(far, "x", 5)

        assert caught.value.reason is NOPROC
        assert not caught.value.begun


async def call_times_out(pid: Pid) -> None:
    with pytest.raises(TimeoutError):
        await call(pid, "nobody answers", 0.02)


# -- any schedule ---------------------------------------------------------------------------------

NAMES = ("a", "b", "c")
PAIRS = (("a", "b"), ("a", "c"), ("b", "c"))
node_names = st.sampled_from(NAMES)
small = st.integers(0, 2)
steps = st.one_of(
    st.tuples(
        st.sampled_from(["join", "leave", "register", "unregister"]), node_names, small, small
    ),
    st.tuples(st.just("end"), node_names, small),
    st.tuples(st.sampled_from(["connect", "connect", "close", "cut"]), st.sampled_from(PAIRS)),
    st.tuples(st.just("wait"), st.integers(0, 30)),
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=60)
@given(schedule=st.lists(steps, max_size=40))
def test_at_rest_all_connected_nodes_agree(backend: str, schedule: list[Any]) -> None:
    anyio.run(play, schedule, backend=backend)


async def play(schedule: list[Any]) -> None:
    """Do all that a schedule says, then compare with what dictionaries have of it."""
    async with sides(*NAMES, connected=False) as made:
        world = dict(zip(NAMES, made, strict=True))
        living = {name: [each.scope.spawn(deaf) for _ in range(3)] for name, each in world.items()}
        for step in schedule:
            await play_step(world, living, step)
        for each in world.values():
            await agree(each, world)


async def play_step(world: dict[str, Side], living: dict[str, list[Pid]], step: Any) -> None:
    match step:
        case ("join", name, who, group):
            world[name].groups.join(f"group {group}", living[name][who])
        case ("leave", name, who, group):
            world[name].groups.leave(f"group {group}", living[name][who])
        case ("register", name, who, key):
            if f"name {key}" not in world[name].registry:
                world[name].registry.register(f"name {key}", None, living[name][who])
        case ("unregister", name, who, key):
            world[name].registry.unregister(f"name {key}", living[name][who])
        case ("end", name, who):
            pid = living[name][who]
            pid.exit("ends")
            await pid.wait()
            living[name][who] = world[name].scope.spawn(deaf)
        case ("connect", (one, other)):
            if not world[one].is_with(world[other]) and not world[other].is_with(world[one]):
                await connect(world[one], world[other], known=False)
        case ("close", (one, other)):
            if world[one].is_with(world[other]):
                world[one].node.peer(other).close()
                await until(lambda: not world[one].is_with(world[other]))
        case ("cut", (one, other)):
            if world[one].is_with(world[other]) and world[other].is_with(world[one]):
                cut(world[one], world[other])
        case ("wait", turns):
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
        case _:
            raise AssertionError(step)


async def agree(here: Side, world: dict[str, Side]) -> None:
    """Wait until a node knows what it is to know, and nothing else."""

    def known() -> Any:
        return (
            {group: ids(here.groups.members(group)) for group in here.groups.which_groups()},
            {
                (name, key): pid.id
                for name in NAMES
                for key in range(3)
                for pid in [here.cluster.holders(f"name {key}").get(name)]
                if pid is not None
            },
            {
                name: Counter(pid.id for pids in neighbour._members.values() for pid in pids)
                for name, neighbour in here.cluster._neighbours.items()
            },
        )

    def expected() -> Any:
        groups: dict[Any, Counter[Any]] = {}
        names = {}
        held = {}
        for name, each in world.items():
            if each is here or (each.is_with(here) and here.is_with(each)):
                for group in each.groups.which_groups():
                    members = ids(each.groups.local_members(group))
                    groups.setdefault(group, Counter()).update(members)
                if each is not here:
                    held[name] = sum(
                        (ids(each.groups.local_members(g)) for g in each.groups.which_groups()),
                        Counter[Any](),
                    )
                names.update({(name, int(k[5:])): p.id for k, p, _ in each.registry.select()})
        return {group: each for group, each in groups.items() if each}, names, held

    with contextlib.suppress(TimeoutError):
        await until(lambda: known() == expected(), 20)
    assert known() == expected()


async def test_a_storm_of_joins_while_nodes_come_and_go() -> None:
    async with sides("a", "b", "c") as (a, b, c):
        world = {"a": a, "b": b, "c": c}
        pids = {name: [each.scope.spawn(deaf) for _ in range(5)] for name, each in world.items()}

        async def storm(name: str) -> None:
            for number in range(200):
                pid = pids[name][number % 5]
                world[name].groups.join(f"group {number % 3}", pid)
                if number % 2:
                    world[name].groups.leave(f"group {(number - 1) % 3}", pid)
                if number % 10 == 0:
                    await anyio.lowlevel.checkpoint()

        async def flap() -> None:
            for number in range(10):
                if number % 2:
                    cut(a, b)
                else:
                    await part(a, b)
                await connect(a, b, known=number % 3 == 0)
                await anyio.sleep(0.002)

        async with anyio.create_task_group() as tg:
            for name in world:
                tg.start_soon(storm, name)
            tg.start_soon(flap)

        for each in world.values():
            await agree(each, world)


def test_a_process_that_has_no_name_is_not_there() -> None:
    registry: Registry[str, Any] = Registry()
    cluster = Cluster(Node("a", secret=SECRET), registry=registry)

    assert cluster.whereis("x") is None
    assert cluster.holders("x") == {}
    with pytest.raises(NoProcessError):
        cluster.via("x").send(1)


async def test_a_cancellation_among_other_exceptions_is_found() -> None:
    caught: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class() as exc:
            caught.append(exc)
            raise

    assert _has_cancellation(caught[0])
    assert _has_cancellation(BaseExceptionGroup("several", [ValueError(), caught[0]]))
    assert not _has_cancellation(ExceptionGroup("several", [ValueError()]))
