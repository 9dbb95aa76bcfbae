"""Processes on other nodes, as they are to those here: messages, calls, links, monitors, ends."""

from __future__ import annotations

import dataclasses
import gc
import math
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest

from backplane import Device, Line, bridge
from backplane.bridge import (
    Asked,
    BusyError,
    EncodeError,
    Limits,
    PayloadError,
    RemoteError,
    Right,
    tell,
)
from backplane.bridge._exports import QUIET
from backplane.bridge._key import Key
from backplane.lowlevel import Outpost, outpost_of
from backplane.otp import (
    KILL,
    KILLED,
    NO_REPLY,
    NOCONNECTION,
    NOPROC,
    NORMAL,
    SHUTDOWN,
    CallTimeoutError,
    Down,
    Exit,
    Exited,
    From,
    GenServer,
    MailboxFullError,
    NoProcessError,
    Overflow,
    Pid,
    Process,
    ReplyError,
    Requests,
    ServerDownError,
    ServerRef,
    Stop,
    Stopped,
    UnknownRequestError,
    call,
    cast,
    cast_after,
    current_process,
    exit_after,
    multi_call,
    on_call,
    on_cast,
    send_after,
    send_request,
    start,
    stop,
    system,
)
from backplane.otp._far import UNTOUCHED, Ear, FarProcess
from backplane.otp.cluster import FarBusyError, FarProcessError
from backplane.supervisor import Supervisor

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from otp.cluster_world import (
        Leak,
        Side,
        collect,
        connect,
        cut,
        deaf,
        idle,
        part,
        settled,
        sides,
        until,
    )
else:
    from .cluster_world import (
        Leak,
        Side,
        collect,
        connect,
        cut,
        deaf,
        idle,
        part,
        settled,
        sides,
        until,
    )

pytestmark = pytest.mark.anyio
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
in_virtual_time = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


class Kept(GenServer):
    """Answers, keeps what it is told, and ends as it is asked to."""

    def init(self, other: Pid | None = None) -> None:
        self.heard: list[Any] = []
        self.asked: list[From] = []
        self.other = other

    def handle_call(self, message: Any, from_: From) -> Any:
        match message:
            case "heard":
                return list(self.heard)
            case "later":
                self.asked.append(from_)
                return NO_REPLY
            case ["stop", reason]:
                return Stop(reason, reply="bye")
            case "crash":
                raise ValueError("on purpose")
            case "refuse":
                raise ReplyError(KeyError("not that"))
            case "who":
                return from_.sender
            case "time":
                return self.time_left()
            case "object":
                return object()
            case _:
                return message

    def handle_cast(self, message: Any) -> None:
        if message == "answer":
            for number, each in enumerate(self.asked):
                each.reply(number)
            self.asked.clear()
        else:
            self.heard.append(message)

    def handle_info(self, message: Any) -> None:
        self.heard.append(message)

    @on_call
    async def ask_other(self, seconds: float) -> Any:
        assert self.other is not None
        return await call(self.other, "later", seconds)


async def kept(side: Side, **options: Any) -> Pid:
    """A server on a node."""
    ref = await start(Kept, scope=side.scope, **options)
    return ref.pid


# -- messages ---------------------------------------------------------------------------------


async def test_what_is_sent_comes_in_order_and_with_its_types() -> None:
    async with sides("a", "b") as (a, b):
        got: list[Any] = []
        far = a.see(b, b.scope.spawn(collect, got))

        assert far.send(1)
        assert far.send({"two": [2.5, None, True, b"bytes"], 3: "three"})
        assert far.send(("tuples", "are", "lists"))
        assert far.send({(1, ("a", 2)): "keys are tuples"})
        assert far.send(Stopped(["in", NORMAL]))
        assert far.send([Exit(KILLED), ValueError("an error")])
        assert await far.wait_send("last")

        assert got[:4] == [
            1,
            {"two": [2.5, None, True, b"bytes"], 3: "three"},
            ["tuples", "are", "lists"],
            {(1, ("a", 2)): "keys are tuples"},
        ]
        assert got[4] == Stopped(["in", NORMAL])
        exit_, error = got[5]
        assert isinstance(exit_, Exit)
        assert exit_.reason is KILLED
        assert isinstance(error, RemoteError)
        assert (error.type_name, error.text) == ("builtins.ValueError", "an error")
        assert got[6:] == ["last"]


async def test_what_cannot_be_encoded_raises_at_its_sender_and_nothing_is_sent() -> None:
    async with sides("a", "b") as (a, b):
        got: list[Any] = []
        far = a.see(b, b.scope.spawn(collect, got))
        nested: list[Any] = []
        nested.append(nested)

        for wrong in (object(), [1, object()], nested, {"x": {object()}}, "\ud800", b"x" * 2**21):
            with pytest.raises(EncodeError):
                far.send(wrong)
            with pytest.raises(EncodeError):
                await far.wait_send(wrong)
            with pytest.raises(EncodeError):
                await call(far, wrong)
            with pytest.raises(EncodeError):
                cast(far, wrong)
        await far.wait_send("only this")

        assert got == ["only this"]
        assert not far._process.calls


async def test_to_the_dead_nothing_is_sent() -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(idle)
        far = a.see(b, pid)
        await until(lambda: pid._process._heralds)
        pid.exit(SHUTDOWN)
        assert await far.wait() is SHUTDOWN

        assert not far.send("late")
        assert not await far.wait_send("late")
        far.exit(KILL)
        far.drain()
        cast(far, "late")
        with pytest.raises(ServerDownError) as caught:
            await call(far, "late")
        assert caught.value.reason is NOPROC


@pytest.mark.parametrize("overflow", list(Overflow), ids=lambda each: each.value)
async def test_a_full_mailbox_over_there_does_as_it_was_told(
    overflow: Overflow, caplog: pytest.LogCaptureFixture
) -> None:
    async with sides("a", "b") as (a, b):
        got: list[Any] = []
        go = anyio.Event()

        async def slow() -> None:
            await go.wait()
            await collect(got)

        pid = b.scope.spawn(slow, capacity=2, overflow=overflow)
        far = a.see(b, pid)

        for number in range(5):
            assert far.send(number)  # that it was dropped, its sender is not told
        await until(lambda: len(pid._process.mailbox) == 2)
        await part(a, b)  # all has come
        go.set()
        await until(lambda: len(got) == 2)

        assert got == ([3, 4] if overflow is Overflow.DROP_OLDEST else [0, 1])
        assert ("is full" in caplog.text) == (overflow is Overflow.RAISE)


async def test_wait_send_waits_for_room_in_a_mailbox_over_there() -> None:
    async with sides("a", "b") as (a, b):
        got: list[Any] = []
        go = anyio.Event()

        async def slow() -> None:
            await go.wait()
            await collect(got)

        pid = b.scope.spawn(slow, capacity=1)
        far = a.see(b, pid)
        sent: list[int] = []

        async def sender() -> None:
            for number in range(20):
                assert await far.wait_send(number)
                sent.append(number)

        async with anyio.create_task_group() as tg:
            tg.start_soon(sender)
            await until(lambda: sent == [0] and pid._process._room)
            go.set()

        await until(lambda: len(got) == 20)
        assert got == sent == list(range(20))
        assert not pid._process._room


async def test_a_wait_send_that_is_cancelled_has_sent_nothing() -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(deaf, capacity=1)
        far = a.see(b, pid)
        far.send("first")
        leak = await Leak.of(a, b)

        with anyio.move_on_after(0.05) as scope:
            await far.wait_send("second")

        assert scope.cancelled_caught
        await until(lambda: not pid._process._room)
        assert list(pid._process.mailbox) == ["first"]
        await leak.is_gone()


@pytest.mark.parametrize("how", ["ends", "is lost"])
async def test_a_wait_send_is_over_when_its_target_is(how: str) -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(deaf, capacity=1)
        far = a.see(b, pid)
        far.send("first")
        results: list[bool] = []

        async def sender() -> None:
            results.append(await far.wait_send("second"))

        async with anyio.create_task_group() as tg:
            tg.start_soon(sender)
            await until(lambda: pid._process._room)
            if how == "ends":
                pid.exit(KILL)
            else:
                cut(a, b)

        assert results == [False]


def flood(far: Pid) -> None:
    for number in range(100_000):  # nobody writes meanwhile
        far.send((number, "x" * 1000))


async def test_a_slow_node_is_a_full_mailbox_and_wait_send_waits_for_it() -> None:
    limits = Limits(outbox=20_000, outbox_hard=5 << 20)
    async with sides("a", "b", limits=limits) as (a, b):
        got: list[Any] = []
        far = a.see(b, b.scope.spawn(collect, got))
        group = a.groups
        group.join("far", far)

        with pytest.raises(FarBusyError, match="bytes wait to be sent to the node of") as caught:
            flood(far)
        assert "more than Limits(outbox=...) of this node" in str(caught.value)
        assert caught.value.message
        with pytest.raises(MailboxFullError):
            await call(far, "no room")
        assert group.publish("far", "left out") == 0
        assert not far._process.calls
        assert await far.wait_send("last")

        assert got[-1] == "last"
        assert [number for number, _ in got[:-1]] == list(range(len(got) - 1))


async def test_wait_send_looks_again_as_long_as_its_node_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[Any] = []
    ask = bridge.call

    async def slow(*args: Any) -> Any:
        tries.append(args)
        if len(tries) < 3:
            raise BusyError("b", 20_000)
        return await ask(*args)

    async with sides("a", "b") as (a, b):
        got: list[Any] = []
        far = a.see(b, b.scope.spawn(collect, got))
        monkeypatch.setattr("backplane.otp._far.ask_and_wait", slow)

        assert await far.wait_send("at last")
        await until(lambda: got == ["at last"])
    assert len(tries) == 3


# -- calls ------------------------------------------------------------------------------------


async def test_a_call_is_answered_at_once_later_and_as_a_request() -> None:
    async with sides("a", "b") as (a, b):
        far = a.see(b, await kept(b))

        assert await call(far, ["any", {"thing": 1}]) == ["any", {"thing": 1}]
        assert await call(far, "who") is None  # who calls is of another node
        with pytest.raises(RemoteError, match="KeyError: 'not that'"):
            await call(far, "refuse")
        with pytest.raises(RemoteError, match="has no form on the wire"):
            await call(far, "object")
        requests = Requests()
        for number in range(3):
            requests.add(send_request(far, "later"), number)
        cast(far, "answer")
        answers = [await requests.receive(5) for _ in range(3)]

        assert sorted(answers) == [(0, 0), (1, 1), (2, 2)]
        assert await multi_call([far, far], "x") == ([(far, "x"), (far, "x")], [])
        assert not far._process.calls


async def test_a_server_stops_with_a_reply_over_there() -> None:
    async with sides("a", "b") as (a, b):
        for reason in (NORMAL, SHUTDOWN, Stopped(["detail", 1])):
            far = a.see(b, await kept(b))

            assert await call(far, ["stop", reason]) == "bye"
            assert await far.wait() == reason
            assert far.reason == reason
            assert not far.alive


@in_virtual_time
async def test_a_late_answer_reaches_nobody_and_what_nobody_waits_for_is_not_handled() -> None:
    handled: list[Any] = []

    class Slow(GenServer):
        async def handle_call(self, message: Any, from_: From) -> Any:
            handled.append(message)
            await anyio.sleep(message)
            return message

    async with sides("a", "b") as (a, b):
        ref = await start(Slow, scope=b.scope)
        far = a.see(b, ref.pid)
        leak = await Leak.of(a, b)
        began = anyio.current_time()

        async with anyio.create_task_group() as tg:
            tg.start_soon(gives_up, far, 10, 3)
            await anyio.sleep(0.5)
            tg.start_soon(gives_up, far, 11, 3)
            await anyio.sleep(0.5)
            with anyio.move_on_after(1):
                await call(far, 12, None)
        assert anyio.current_time() - began == pytest.approx(3.5)

        assert await call(far, 0, None) == 0
        assert handled == [10, 0]
        assert not ref.pid._process.calls
        await leak.is_gone()


async def gives_up(far: Pid, message: Any, seconds: float) -> None:
    with pytest.raises(CallTimeoutError) as caught:
        await call(far, message, seconds)
    assert caught.value.seconds == seconds
    assert caught.value.target == far


async def test_a_pid_tells_on_which_other_node_its_process_lives() -> None:
    long = "b" * 255
    async with sides("a", long) as (a, b):
        pid = b.scope.spawn(deaf)
        far = a.see(b, pid)
        told = f"<Pid {pid.id.serial} deaf on {long[:100]}"

        assert repr(far) == f"{told}>"
        assert repr(pid) == f"<Pid {pid.id.serial} deaf>"
        with pytest.raises(CallTimeoutError, match=f"^{told}> did not answer"):
            await call(far, "x", 0.01)
        pid.exit()
        await far.wait()
        assert repr(far) == f"{told} (ended)>"


@in_virtual_time
async def test_a_deadline_goes_along_through_nested_calls_across_nodes() -> None:
    async with sides("a", "b", "c") as (a, b, c):
        last = await kept(c)
        middle = await start(Kept, b.see(c, last), scope=b.scope)
        first = ServerRef(a.see(b, middle.pid), Kept)
        began = anyio.current_time()

        with pytest.raises(CallTimeoutError):
            await first.within(2).call(Kept.ask_other, 60)
        assert anyio.current_time() - began == 2
        await anyio.sleep(0.1)

        assert middle.pid.alive  # what it waited for was cut short, and it went on
        assert not last._process.calls
        assert 0 < await call(a.see(b, middle.pid), "time", 4) <= 4
        assert await call(a.see(b, middle.pid), "time", None) is None
        assert await call(a.see(b, middle.pid), "time", math.inf) is None


async def test_ten_callers_hear_at_once_why_their_server_crashed_and_who_was_begun_with() -> None:
    class Crashing(GenServer):
        async def handle_call(self, message: Any, from_: From) -> Any:
            await go.wait()
            raise ValueError("on purpose")

    go = anyio.Event()
    async with sides("a", "b") as (a, b):
        ref = await start(Crashing, scope=b.scope)
        far = a.see(b, ref.pid)
        errors: list[ServerDownError] = []

        async def caller() -> None:
            with pytest.raises(ServerDownError) as caught:
                await call(far, "x", None)
            errors.append(caught.value)

        async with anyio.create_task_group() as tg:
            for _ in range(10):
                tg.start_soon(caller)
            await until(lambda: len(ref.pid._process.calls or ()) == 10)
            go.set()

        assert {error.reason.text for error in errors} == {"on purpose"}
        assert {error.target for error in errors} == {far}
        assert sorted(error.begun for error in errors) == [False] * 9 + [True]


@pytest.mark.parametrize(
    "reason", [SHUTDOWN, Stopped("so"), KILLED, "any value", ["a", 1]], ids=str
)
async def test_callers_hear_the_very_reason(reason: Any) -> None:
    class Ending(GenServer):
        def handle_call(self, message: Any, from_: From) -> Any:
            return Stop(reason)

    async with sides("a", "b") as (a, b):
        ref = await start(Ending, scope=b.scope)

        with pytest.raises(ServerDownError) as caught:
            await call(a.see(b, ref.pid), "x")

        assert caught.value.reason == reason


async def test_a_lost_connection_ends_calls_at_once() -> None:
    async with sides("a", "b") as (a, b):
        pid = await kept(b)
        far = a.see(b, pid)
        request = send_request(far, "later")
        await until(lambda: pid._process.calls)

        cut(a, b)

        assert request.over
        assert isinstance(request.error, ServerDownError)
        assert request.error.reason is NOCONNECTION
        assert request.error.begun  # for all that is known here
        await until(lambda: not pid._process.calls)  # nobody waits for it any longer


async def test_a_full_mailbox_is_told_to_the_caller() -> None:
    async with sides("a", "b") as (a, b):
        for overflow in Overflow:
            pid = b.scope.spawn(deaf, capacity=1, overflow=overflow)
            far = a.see(b, pid)
            first = send_request(far, "first")
            await until(lambda pid=pid: len(pid._process.mailbox) == 1)  # type: ignore[misc]
            second = send_request(far, "second")
            lost = first if overflow is Overflow.DROP_OLDEST else second
            await until(lambda lost=lost: lost.over)  # type: ignore[misc]

            assert isinstance(lost.error, MailboxFullError)
            assert lost.error.capacity == 1
            assert lost.error.target == far
            first.abandon()
            second.abandon()


async def test_system_requests_and_what_a_server_does_not_know() -> None:
    async with sides("a", "b") as (a, b):

        class Bare(GenServer):
            pass

        far = a.see(b, (await start(Bare, scope=b.scope)).pid)

        with pytest.raises(FarProcessError, match="lives on another node: do this there"):
            await system.get_state(far)
        with pytest.raises(ServerDownError) as caught:
            await call(far, "x")
        assert caught.value.reason.type_name.endswith(UnknownRequestError.__name__)


async def test_stop_and_drain_work_across() -> None:
    async with sides("a", "b") as (a, b):
        for reason in (NORMAL, "because"):
            far = a.see(b, await kept(b))
            far.send("before")
            await stop(far, reason, 5)
            assert far.reason == reason

        pid = await kept(b)
        far = a.see(b, pid)
        far.send("before")
        ServerRef(far, Kept).drain()
        assert await far.wait() == Stopped("drained")

        far = a.see(b, await kept(b))
        far.shutdown()
        assert await far.wait() is SHUTDOWN


# -- typed methods ----------------------------------------------------------------------------


@dataclasses.dataclass
class Inner:
    number: int


@dataclasses.dataclass
class Order:
    what: str
    inner: Inner
    more: list[Inner]
    back: Pid | None = None


@dataclasses.dataclass
class Unnamed:
    what: str


class Shop(GenServer):
    def init(self) -> None:
        self.orders: list[Any] = []

    @on_call
    def order(self, order: Order, times: int = 1, *more: Inner, **named: Unnamed) -> Order:
        self.orders.append((order, times, more, named))
        return order

    @on_call
    async def echo(self, pid: Pid, by_name: dict[str, Inner]) -> tuple[Pid, dict[str, Inner]]:
        return pid, by_name

    @on_call
    def wrong(self) -> int:
        return "no number"  # type: ignore[return-value]

    @on_call
    def loose(self, value, other: Pid | From | None = None):  # type: ignore[no-untyped-def]
        return value

    @on_call
    def unresolved(self, value: NotThere) -> NotThere:  # type: ignore[name-defined]  # noqa: F821
        return value

    @on_call
    def nothing(self) -> None:
        pass

    @on_call
    def only_named(self, *, number: int) -> int:
        return number

    @on_cast
    def jot(self, inner: Inner) -> None:
        self.orders.append(inner)

    def unmarked(self) -> None:
        raise AssertionError

    def _private(self) -> None:
        raise AssertionError


class SubShop(Shop):
    def order(self, order: Order, times: int = 1, *more: Inner, **named: Unnamed) -> Order:
        return dataclasses.replace(order, what="overridden")


def raw(far: Pid, *envelope: Any) -> None:
    """Send a far process's port what no honest node does."""
    tell(far.line(), list(envelope))


async def raw_call(far: Pid, *envelope: Any) -> Any:
    from backplane.bridge import call as bridge_call

    return await bridge_call(far.line(), list(envelope))


async def test_a_method_gets_and_returns_what_its_annotations_say() -> None:
    async with sides("a", "b", types=[Order, Inner]) as (a, b):
        local = await start(Shop, scope=b.scope)
        mine = a.scope.spawn(idle)
        shop: Any = ServerRef(a.see(b, local.pid), Shop)
        order = Order("bolts", Inner(1), [Inner(2)], mine)

        assert await shop.call(Shop.order, order) == order
        assert await shop.call(Shop.order, order, 3, Inner(4), x=Unnamed("y")) == order
        assert await shop.call(Shop.echo, mine, {"x": Inner(1)}) == (mine, {"x": Inner(1)})
        assert await shop.call(Shop.nothing) is None
        assert await shop.call(Shop.only_named, number=3) == 3
        assert await shop.call(Shop.loose, [1, Inner(2)]) == [1, Inner(2)]
        assert await shop.call(Shop.unresolved, "as it came") == "as it came"
        shop.cast(Shop.jot, Inner(7))
        await shop.call(Shop.nothing)

        (first, times, more, named), second, note = (await system.get_state(local.pid))["orders"]
        assert first.back == b.see(a, mine)
        assert (first.inner, first.more, times, more, named) == (Inner(1), [Inner(2)], 1, (), {})
        assert second[1:] == (3, (Inner(4),), {"x": Unnamed("y")})
        assert note == Inner(7)


async def test_a_method_that_overrides_a_marked_one_is_reached_too() -> None:
    async with sides("a", "b", types=[Order, Inner]) as (a, b):
        ref = await start(SubShop, scope=b.scope)
        shop: Any = ServerRef(a.see(b, ref.pid), Shop)

        got = await shop.call(Shop.order, Order("bolts", Inner(1), []))

        assert got.what == "overridden"


async def test_arguments_of_the_wrong_type_are_refused_and_the_server_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with sides("a", "b", types=[Inner]) as (a, b):
        ref = await start(Shop, scope=b.scope)
        far = a.see(b, ref.pid)
        shop: Any = ServerRef(far, Shop)
        good: Any = {"what": "bolts", "inner": Inner(1), "more": []}

        for args in (["no order"], [good, "no int"], [good, 1, "no Inner"], [], [None]):
            with pytest.raises(RemoteError):
                await raw_call(far, "K", "order", args, {})
        for named in ({"order": 1}, {"order": good, "x": 1}, {"order": good, 1: 2}):
            with pytest.raises(RemoteError):
                await raw_call(far, "K", "order", [], named)
        of_echo = r"PayloadError: argument 'pid' of Shop\.echo is of the wrong type: a Pid was "
        with pytest.raises(RemoteError, match=of_echo):
            await shop.call(Shop.echo, 1, {})
        returned = r"^what the server has returned from Shop\.wrong is of the wrong type: Expected "
        with pytest.raises(PayloadError, match=returned):
            await shop.call(Shop.wrong)
        raw(far, "C", "jot", ["no Inner"], {})
        shop.cast(Shop.jot, Inner(1), 2)

        assert await shop.call(Shop.only_named, number=3) == 3
        assert (await system.get_state(ref.pid))["orders"] == []
        assert (
            f"a message from 'a' to {ref.pid!r} was refused, the 1. so far: "
            "argument 'order' of Shop.order is of the wrong type: Expected "
        ) in caplog.text


@pytest.mark.parametrize(
    "name",
    ["unmarked", "_private", "jot", "init", "handle_call", "__init__", "process", "nobody", ""],
)
async def test_what_is_not_marked_as_a_call_is_not_reached(name: str) -> None:
    async with sides("a", "b") as (a, b):
        ref = await start(Shop, scope=b.scope)
        far = a.see(b, ref.pid)
        plain = a.see(b, b.scope.spawn(idle))

        for process in (far, plain):
            with pytest.raises(RemoteError, match="is no method of that process, marked @on_call"):
                await raw_call(process, "K", name, [], {})
        if name != "jot":
            raw(far, "C", name, [], {})

        assert await ServerRef(far, Shop).call(Shop.only_named, number=1) == 1


# -- ends -------------------------------------------------------------------------------------

REASONS: list[tuple[Any, Any]] = [
    (NORMAL, NORMAL),
    (SHUTDOWN, SHUTDOWN),
    (KILLED, KILLED),
    (NOCONNECTION, NOCONNECTION),
    (Stopped("detail"), Stopped("detail")),
    ("a value", "a value"),
    ({"a": [1, None]}, {"a": [1, None]}),
]


def alike(reason: Any, expected: Any) -> bool:
    """Whether a reason is what another one is to other nodes."""
    if isinstance(expected, Exception):
        return isinstance(reason, RemoteError) and reason.text == str(expected)
    return bool(reason == expected)


@pytest.mark.parametrize(
    "reason", [*(reason for reason, _ in REASONS), ValueError("on purpose")], ids=repr
)
async def test_monitors_links_and_waiters_hear_the_very_reason_once(reason: Any) -> None:
    async def target() -> None:
        await current_process().receive()
        if isinstance(reason, ValueError):
            raise reason
        raise Exit(reason)

    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(target)
        far = a.see(b, pid)

        async def watcher() -> list[Any]:
            me = current_process()
            refs = [me.monitor(far), me.monitor(far)]
            me.link(far)
            taken_back = me.monitor(far)
            assert me.demonitor(taken_back)
            await until(lambda: pid._process.links)
            far.send("end")
            got = [await me.receive(timeout=20) for _ in range(3)]
            await part(a, b)
            with pytest.raises(TimeoutError):
                await me.receive(timeout=0)
            assert [each.ref for each in got if isinstance(each, Down)] == refs
            return got

        got = await a.run(watcher, trap_exit=True)

        assert all(alike(each.reason, reason) for each in got)
        assert {each.sender for each in got if isinstance(each, Exited)} == {far}
        assert {each.process for each in got if isinstance(each, Down)} == {far}
        assert alike(far._process.reason, reason)


@pytest.mark.parametrize("reason", [SHUTDOWN, "a value", ValueError("on purpose")], ids=repr)
async def test_one_that_does_not_trap_exits_ends_for_the_same_reason(reason: Any) -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(idle)
        near = a.scope.spawn(idle)

        near._process.link(a.see(b, pid))
        await until(lambda: pid._process.links)
        pid.exit(reason)

        assert alike(await near.wait(), reason)


async def test_a_normal_end_ends_nobody() -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(idle)
        near = a.scope.spawn(idle)
        near._process.link(a.see(b, pid))
        await until(lambda: pid._process.links)

        pid.send("end")
        await pid.wait()
        await until(lambda: not near._process.links)

        assert near.alive


@pytest.mark.parametrize("by", ["near", "far", "both"])
@pytest.mark.parametrize("ends", ["near", "far"])
async def test_a_link_holds_whoever_made_it_and_whoever_ends(by: str, ends: str) -> None:
    async with sides("a", "b") as (a, b):
        near, far = a.scope.spawn(idle), b.scope.spawn(idle)
        if by != "far":
            near._process.link(a.see(b, far))
        if by != "near":
            far._process.link(b.see(a, near))
        await until(lambda: near._process.links and far._process.links)
        assert near._process.links == [a.see(b, far)]
        assert far._process.links == [b.see(a, near)]

        (near if ends == "near" else far).exit("a value")

        assert await near.wait() == await far.wait() == "a value"


@pytest.mark.parametrize("made_by", ["near", "far", "both"])
@pytest.mark.parametrize("taken_back_by", ["near", "far"])
async def test_either_side_takes_a_link_back(made_by: str, taken_back_by: str) -> None:
    async with sides("a", "b") as (a, b):
        near, far = a.scope.spawn(idle), b.scope.spawn(idle)
        if made_by != "far":
            near._process.link(a.see(b, far))
        if made_by != "near":
            far._process.link(b.see(a, near))
        await settled()
        assert near._process.links
        assert far._process.links

        if taken_back_by == "near":
            near._process.unlink(a.see(b, far))
        else:
            far._process.unlink(b.see(a, near))
        await until(lambda: not near._process.links and not far._process.links)
        far.exit("a value")
        await far.wait()
        await part(a, b)

        assert near.alive


async def test_one_that_ends_as_soon_as_it_has_linked_is_heard_with_its_reason() -> None:
    async with sides("a", "b") as (a, b):
        far = b.scope.spawn(idle)

        async def brief() -> None:
            current_process().link(a.see(b, far))
            raise Exit(SHUTDOWN)

        a.scope.spawn(brief)

        assert await far.wait() is SHUTDOWN


async def test_linking_with_the_dead() -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(idle)
        far = a.see(b, pid)
        pid.send("end")
        await far.wait()

        async def plain() -> None:
            with pytest.raises(NoProcessError):
                current_process().link(far)

        async def trapping() -> Any:
            me = current_process()
            me.link(far)
            me.monitor(far)
            return [await me.receive(timeout=20), await me.receive(timeout=20)]

        await a.run(plain)
        exited, down = await a.run(trapping, trap_exit=True)

        assert exited == Exited(far, NOPROC)
        assert down.reason is NOPROC


@pytest.mark.parametrize("trap_exit", [False, True])
async def test_one_that_ended_before_the_link_came_there_is_no_such_process(
    trap_exit: bool,
) -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(idle)
        packed = b.node.encode(pid)
        pid.exit(SHUTDOWN)
        await pid.wait()

        async def late() -> Any:
            me = current_process()
            far = a.node.decode(packed)
            me.link(far)
            ref = me.monitor(far)
            down = await me.receive(match=Down, timeout=20)
            assert (down.ref, down.process) == (ref, far)
            return [down.reason, (await me.receive(timeout=20)).reason]

        if trap_exit:
            assert await a.run(late, trap_exit=True) == [NOPROC, NOPROC]
        else:
            with pytest.raises((Exit, AssertionError), match="noproc"):
                await a.run(late)


async def test_a_pid_of_one_that_has_ended_is_that_of_no_process() -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(idle)
        pid.exit(SHUTDOWN)
        await pid.wait()

        far = a.see(b, pid)

        assert not far.alive
        assert far.reason is NOPROC
        assert repr(far).endswith(" idle on b (ended)>")
        with pytest.raises(ServerDownError):
            await call(far, "x")


@pytest.mark.parametrize("end", [part, cut], ids=["closed", "lost"])
async def test_a_lost_connection_is_heard_by_all_and_both_sides_live_on(end: Any) -> None:
    async with sides("a", "b") as (a, b):
        near, far = a.scope.spawn(deaf, trap_exit=True), b.scope.spawn(deaf, trap_exit=True)
        seen = a.see(b, far)
        near._process.link(seen)
        ref = near._process.monitor(seen)
        await until(lambda: far._process.links)

        result = end(a, b)
        if result is not None:
            await result

        await until(lambda: len(near._process.mailbox) == 2)
        assert seen.reason is NOCONNECTION
        down, exited = near._process.mailbox
        assert down == Down(ref, seen, NOCONNECTION)
        assert exited == Exited(seen, NOCONNECTION)
        await until(lambda: far._process.mailbox)
        assert far._process.mailbox.popleft().reason is NOCONNECTION
        assert not near._process.links
        assert not far._process.links
        assert near.alive
        assert far.alive


async def test_one_that_does_not_trap_exits_ends_with_the_connection() -> None:
    async with sides("a", "b") as (a, b):
        near, far = a.scope.spawn(idle), b.scope.spawn(idle)
        near._process.link(a.see(b, far))
        await until(lambda: far._process.links)

        cut(a, b)

        assert await near.wait() is NOCONNECTION
        assert await far.wait() is NOCONNECTION


# -- exit signals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason", [NORMAL, SHUTDOWN, Stopped("x"), "any", ValueError("x"), KILL], ids=repr
)
async def test_exit_signals_do_there_what_they_do_here(reason: Any) -> None:
    async with sides("a", "b") as (a, b):
        plain, trapping = b.scope.spawn(idle), b.scope.spawn(deaf, trap_exit=True)

        async def sender() -> Pid:
            for pid in (plain, trapping):
                a.see(b, pid).exit(reason)
            return current_process().pid

        me = await a.run(sender)
        if reason is NORMAL:
            await until(lambda: trapping._process.mailbox)
            assert plain.alive
        else:
            assert alike(await plain.wait(), KILLED if reason is KILL else reason)
        if reason is KILL:
            assert await trapping.wait() is KILLED
        else:
            await until(lambda: trapping._process.mailbox)
            message = trapping._process.mailbox[0]
            assert message.sender.id == me.id
            assert alike(message.reason, reason)


async def test_an_exit_signal_from_outside_has_no_sender() -> None:
    async with sides("a", "b") as (a, b):
        trapping = b.scope.spawn(deaf, trap_exit=True)

        a.see(b, trapping).exit("a value")

        await until(lambda: trapping._process.mailbox)
        assert trapping._process.mailbox[0] == Exited(None, "a value")


class Unsayable:
    def __repr__(self) -> str:
        return "<\ud800 unsayable>"


@pytest.mark.parametrize(
    ("reason", "heard"),
    [
        (Unsayable(), "<\\ud800 unsayable>"),
        (ValueError("\ud800"), "\\ud800"),
        (Stopped(Unsayable()), Stopped("<\\ud800 unsayable>")),
        (b"x" * 2**21, "x"),
        (Stopped(b"x" * 2**21), "x"),
    ],
    ids=["a value", "an error", "a good end", "too long", "a good end, too long"],
)
async def test_a_reason_that_cannot_travel_is_told_as_text(reason: Any, heard: Any) -> None:
    async with sides("a", "b") as (a, b):
        for how in ("its own end", "a signal"):
            pid = b.scope.spawn(idle)
            far = a.see(b, pid)
            if how == "a signal":
                far.exit(reason)
                got = await pid.wait()
            else:
                await until(lambda pid=pid: pid._process._heralds)  # type: ignore[misc]
                pid.exit(reason)
                got = await far.wait()

            if isinstance(heard, Stopped):
                assert got == heard
            elif isinstance(reason, Stopped):
                assert isinstance(got, Stopped)
                assert heard in got.detail
            else:
                assert isinstance(got, RemoteError)
                assert heard in got.text


# -- what else there is for pids ------------------------------------------------------------


@in_virtual_time
async def test_timers_aliases_and_addresses_lead_to_far_processes() -> None:
    async with sides("a", "b") as (a, b):
        pid = await kept(b)
        b.registry.register("kept", None, pid)
        far = await a.cluster.await_name("kept", 5)
        here = a.scope.spawn(idle)

        send_after(1, far, "sent", owner=here)
        cast_after(2, far, "cast", owner=here)
        timer = send_after(3, far, "cancelled", owner=here)
        send_after(4, a.cluster.via("kept"), "via", owner=here)
        await anyio.sleep(2.5)
        timer.cancel()
        await anyio.sleep(2)
        assert await call(a.cluster.via("kept"), "heard") == ["sent", "cast", "via"]

        exit_after(1, far, "enough", owner=here)
        late = send_after(2, far, "never", owner=here)
        assert await far.wait() == "enough"
        assert not late.active  # it has gone with its target
        with pytest.raises(NoProcessError):
            a.cluster.via("kept").send("x")


async def test_a_child_that_is_linked_with_a_far_process_is_restarted_when_that_ends() -> None:
    starts: list[Pid] = []
    async with sides("a", "b") as (a, b):
        far = [b.scope.spawn(idle) for _ in range(2)]

        class Tied(GenServer):
            def init(self) -> None:
                self.process.link(a.see(b, far[len(starts)]))
                starts.append(self.process.pid)

        from backplane.otp import child_spec

        async with Supervisor([child_spec(Tied, id="tied")]):
            await until(lambda: len(starts) == 1 and far[0]._process.links)
            far[0].exit("a value")
            await until(lambda: len(starts) == 2)

            assert starts[0].reason == "a value"
            assert starts[1].alive


async def test_far_processes_are_used_from_other_threads() -> None:
    async with sides("a", "b") as (a, b):
        pid = await kept(b)
        far = a.see(b, pid)
        errors: list[BaseException] = []
        answers: list[Any] = []

        def work(number: int) -> None:
            async def ask() -> None:
                for each in range(100):
                    assert far.send([number, each])
                    assert await call(far, [number, each], 20) == [number, each]
                answers.append(number)

            try:
                anyio.run(ask, backend=("asyncio", "trio")[number % 2])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        await until(lambda: not any(thread.is_alive() for thread in threads), 60)

        assert errors == []
        assert sorted(answers) == [0, 1, 2, 3]
        heard = await call(far, "heard")
        for number in range(4):
            assert [each for who, each in heard if who == number] == list(range(100))
        assert not far._process.calls


# -- what stays behind --------------------------------------------------------------------------


@pytest.mark.heavy
async def test_far_pids_that_are_dropped_leave_nothing_on_either_node() -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(idle)
        a.see(b, pid)
        leak = await Leak.of(a, b)

        for _ in range(30):
            pids = [b.scope.spawn(idle) for _ in range(100)]
            seen = [a.see(b, each) for each in pids]
            assert len({*seen}) == 100
            while pids:
                pids[-1].send("end")
                await pids.pop().wait()
            del seen

        await leak.is_gone()


async def test_a_far_pid_that_is_dropped_while_its_process_lives_is_not_watched_longer() -> None:
    async with sides("a", "b") as (a, b):
        pids = [b.scope.spawn(idle) for _ in range(100)]
        seen = [a.see(b, each) for each in pids]
        mirror = b.node.peer("a")._session.mirror
        await until(lambda: len(mirror.watches) >= 100)

        gc.disable()  # it does not take a collection
        try:
            del seen
            await until(lambda: len(mirror.watches) < 10)
        finally:
            gc.enable()

        assert len(a.far()) == 0
        again = a.see(b, pids[0])
        pids[0].exit("a value")
        assert await again.wait() == "a value"


@pytest.mark.heavy
async def test_a_server_that_many_short_lived_far_processes_call_stays_as_small_as_before() -> None:
    async with sides("a", "b") as (a, b):
        server = await kept(b)
        far = a.see(b, server)

        async def short() -> None:
            me = current_process()
            assert await call(far, ["mine is", me.pid]) == ["mine is", me.pid]

        async def linked() -> None:
            me = current_process()
            me.link(far)
            me.monitor(far)
            assert await call(far, 1) == 1

        await a.run(short)
        await a.run(linked)
        leak = await Leak.of(a, b)

        for _ in range(50):
            pids = [a.scope.spawn(fn) for _ in range(20) for fn in (short, linked)]
            while pids:
                assert await pids.pop().wait() is NORMAL

        assert await call(far, 1) == 1  # a server has the last message still
        await leak.is_gone()
        await until(lambda: not server._process.links)
        assert not far._process.calls
        assert not far._process._watchers
        assert not far._process._links
        assert server.alive


def test_an_ear_that_fails_keeps_nobody_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(fault: object) -> None:
        raise ValueError("on purpose")

    heard: list[object] = []
    device = Device()
    ears = [Ear(fail).listen(device.line()), Ear(heard.append).listen(device.line())]

    device.disconnect()

    assert heard == [None]
    assert "was not heard" in caplog.text
    assert all(isinstance(ear, Line) for ear in ears)


# -- what only other threads can bring about, brought about here ----------------------------------


class Quick:
    """A session whose requests are answered before whoever asks has been told so."""

    def __init__(self, answer: Any) -> None:
        self.calls = self.payloads = self
        self._answer = answer
        self.asked: list[Any] = []

    def pack(self, value: Any) -> bytes:
        return msgspec.msgpack.encode(value)

    def open(self, data: bytes, as_type: Any) -> Any:
        return msgspec.msgpack.decode(data, type=as_type)

    def ask(self, token: bytes, raw: bytes, seconds: float | None, hear: Any) -> Any:
        asked = Asked(self, 1, hear)  # type: ignore[arg-type]
        asked.finish(msgspec.msgpack.encode(self._answer), False, None)
        self.asked.append(asked)
        return asked

    def give_up(self, asked: Any) -> None:
        pass


async def test_an_answer_that_comes_before_it_is_waited_for_is_heard_once() -> None:
    async with sides("a", "b") as (a, b):
        real = a.see(b, b.scope.spawn(deaf))
        outpost = outpost_of(real.line())
        assert outpost is not None
        session = Quick("at once")
        key = Key(session, outpost.key.line)
        _, line = Outpost.open(real.id, None, deque(), QUIET, key)
        far = FarProcess(a.cluster._pids, line, b"", "b")

        assert await call(far.pid, "x") == "at once"

        assert not far.calls
        session.asked[0].hear()  # nobody waits any longer


async def test_what_is_asked_and_sent_while_the_connection_is_being_lost() -> None:
    async with sides("a", "b") as (a, b):
        first, second = (a.see(b, b.scope.spawn(deaf)) for _ in range(2))
        request = send_request(first, "later")
        results: list[Any] = []

        def then() -> None:
            results.append(second.alive)
            results.append(second.send("x"))
            results.append(send_request(second, "y").error)

        request.hearers.append(then)
        cut(a, b)

        alive, sent, error = results
        assert alive
        assert not sent
        assert isinstance(error, ServerDownError)
        assert error.reason is NOCONNECTION
        assert not error.begun


async def test_an_end_is_not_heard_for_one_that_nobody_has_any_longer() -> None:
    async with sides("a", "b") as (a, b):
        far = a.see(b, b.scope.spawn(deaf))
        ear_line = far._process._ear  # type: ignore[attr-defined]
        outpost = outpost_of(ear_line)
        assert outpost is not None
        ear: Any = outpost.events

        del far
        gc.collect()
        ear._hear(None)

        assert a.far() == []


class Asking:
    """A request, as a port has it."""

    node = "a"
    seconds = None
    over = None

    def __init__(self, *envelope: Any) -> None:
        self._envelope = list(envelope)
        self.refused: list[Any] = []

    def open(self, as_type: Any) -> Any:
        return self._envelope

    def refuse(self, ended: bool, fault: Any) -> None:
        self.refused.append((ended, fault))


async def test_what_comes_for_one_that_is_just_ending() -> None:
    async with sides("a", "b") as (a, b):
        mine = a.scope.spawn(deaf)
        process = Process(Device("lone"))
        pids = b.cluster._pids
        port = pids._port(process)
        process.reason = "just ending"
        request: Any = Asking("k", 1)

        port.call(request)
        port._take("a", ["l", b.see(a, mine)])

        assert request.refused == [(True, UNTOUCHED)]
        assert not process._links
        line = pids.find_cluster("a")
        assert line is not None
        seen = a.node.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(16, port.address)))
        port.watch("a", line)
        assert await seen.wait() == "just ending"
        assert pids.find_cluster("nobody") is None
        pids.announce_to(process.pid, "nobody")
        process.device.disconnect()


async def test_a_pid_of_an_end_that_is_still_to_be_announced_is_the_one_that_was_known() -> None:
    async with sides("a", "b") as (a, b):
        far = a.see(b, b.scope.spawn(deaf))
        ended = b"\0" + far._process.address[1:]  # type: ignore[attr-defined]

        assert a.node.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(16, ended))) == far
        assert far.alive


async def test_an_end_is_announced_to_clusters_elsewhere_only() -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(deaf)
        far = a.see(b, pid)
        # One of b's own instead: it takes the place of the cluster.
        device = Device()
        b.node.export("device", device, rights=Right.ALL)
        line = await a.node.peer("b").find("device")

        cluster = a.cluster._find_cluster("b")
        assert cluster is not None
        tell(cluster, ["w", [far._process.address], line])  # type: ignore[attr-defined]
        await settled()
        pid.exit("ends")

        assert await far.wait() is NOPROC


async def test_pids_that_came_before_the_clusters_met_end_for_their_reasons() -> None:
    async with sides("a", "b", connected=False) as (a, b):
        pid = b.scope.spawn(deaf)
        await connect(a, b, known=False)
        far = a.see(b, pid)

        await a.cluster.await_node("b", 20)
        await b.cluster.await_node("a", 20)
        await settled()
        pid.exit("ends")

        assert await far.wait() == "ends"


@pytest.mark.heavy
async def test_more_short_lived_pids_than_messages_for_nobody_are_allowed() -> None:
    async with sides("a", "b") as (a, b):
        far = a.see(b, b.scope.spawn(deaf))

        for _ in range(1500):
            pid = a.scope.spawn(idle)
            far.send(pid)
            pid._process.end("at once")

        assert await far.wait_send("last")
        assert a.node.peers()


async def test_what_a_cluster_is_sent_as_a_device_does_not_pile_up() -> None:
    async with sides("a", "b") as (a, b):
        pid = b.scope.spawn(deaf)
        a.see(b, pid)
        await settled()
        port = b.cluster._pids._ports[pid.id]
        assert port._watchers is not None

        assert port._watchers["a"].shutdown()
        await settled()

        assert a.cluster._device.connected
        with pytest.raises(anyio.WouldBlock):
            a.cluster._device.receive_nowait()
        assert a.see(b, pid).alive
