"""The life of a server: how it starts, what its callbacks may do, how it ends."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.lowlevel
import pytest

from backplane.otp import (
    KILL,
    KILLED,
    NO_REPLY,
    NOPROC,
    NORMAL,
    SHUTDOWN,
    BadReturnError,
    CallTimeoutError,
    Down,
    Exit,
    Exited,
    From,
    GenServer,
    InitError,
    MailboxFullError,
    NoReply,
    NotInProcessError,
    Overflow,
    Pid,
    Reply,
    ReplyError,
    Scope,
    ScopeError,
    Server,
    ServerDownError,
    ServerRef,
    Stop,
    Stopped,
    UnknownRequestError,
    call,
    cast,
    cast_after,
    child_spec,
    current_process,
    on_call,
    receive_response,
    send_request,
    spawn,
    start,
    start_monitor,
    start_soon,
    stop,
    system,
)
from backplane.otp._ledger import AlreadyRegisteredError
from backplane.otp._names import register, whereis
from backplane.otp._registry import Registry
from backplane.supervisor import ChildKilled, Ignore, Restart, SpecError, Supervisor
from backplane.supervisor import StartError as ChildStartError

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)
S = TypeVar("S", bound=GenServer)
Log = list[tuple[Any, ...]]


class Puppet(GenServer):
    """Does whatever function it is sent, and notes what happens to it."""

    def init(self, log: Log | None = None, setup: Callable[[Puppet], Any] | None = None) -> Any:
        self.log: Log = [] if log is None else log
        return None if setup is None else setup(self)

    def handle_call(self, message: Any, from_: From) -> Any:
        return message(self, from_) if callable(message) else message

    def handle_cast(self, message: Any) -> Any:
        if callable(message):
            return message(self)
        self.log.append(("cast", message))
        return None

    def handle_info(self, message: Any) -> Any:
        if callable(message):
            return message(self)
        self.log.append(("info", message))
        return None

    def handle_continue(self, argument: Any) -> Any:
        self.log.append(("continue", argument))
        return argument(self) if callable(argument) else None

    def handle_timeout(self) -> Any:
        self.log.append(("timeout", anyio.current_time()))

    def terminate(self, reason: Any) -> Any:
        self.log.append(("terminate", reason))


class Trapping(Puppet):
    """The same, but it takes exit signals as messages."""

    def init(self, log: Log | None = None, setup: Callable[[Puppet], Any] | None = None) -> Any:
        self.process.trap_exit = True
        return super().init(log, setup)


async def up(kind: type[S], *args: Any, **options: Any) -> ServerRef[S]:
    """Start a server; unlike ``start``, with whatever arguments."""
    return await start(kind, *args, **options)


def raising(error: Exception) -> Callable[..., Any]:
    """Make a callback that raises."""

    def fn(*_: Any) -> Any:
        raise error

    return fn


def later(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make an async callback of a plain one."""

    async def run(*args: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return fn(*args)

    return run


async def ticks(many: int = 20) -> None:
    """Let all others run."""
    for _ in range(many):
        await anyio.lowlevel.checkpoint()


# How it starts.


async def test_start_returns_after_init() -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log, lambda it: it.log.append(("init",)))

        assert log == [("init",)]
        assert ref.pid.alive
        assert ref.kind is Puppet


@virtual
async def test_start_awaits_an_async_init() -> None:
    async def setup(it: Puppet) -> None:
        await ticks()
        it.log.append(("init",))

    log: Log = []

    async with Scope():
        await up(Puppet, log, setup)

        assert log == [("init",)]


@virtual
async def test_start_passes_arguments_by_position_and_by_name() -> None:
    class Named(GenServer):
        def init(self, first: int, *, second: int) -> None:
            self.sum = (first, second)

    async with Scope():
        ref = await up(Named, 1, second=2)

        assert await system.get_state(ref) == {"sum": (1, 2)}


@virtual
async def test_a_server_without_init_refuses_arguments() -> None:
    class Empty(GenServer):
        pass

    async with Scope():
        assert (await up(Empty)).pid.alive
        with pytest.raises(InitError) as failure:
            await start(Empty, 5)

    assert isinstance(failure.value.reason, TypeError)
    assert "Empty takes no arguments" in str(failure.value.reason)


@virtual
@pytest.mark.parametrize(
    "make", [raising, lambda error: later(raising(error))], ids=["sync", "async"]
)
async def test_an_init_that_raises_fails_the_start_and_says_what_failed(
    make: Callable[[Exception], Callable[..., Any]],
) -> None:
    error = ValueError("no such file")
    log: Log = []

    async with Scope() as scope:
        with pytest.raises(InitError) as failure:
            await start(Puppet, log, make(error))

        assert scope.processes == []
    assert failure.value.reason is error
    assert failure.value.__cause__ is error
    assert "no such file" in str(failure.value)
    assert "Puppet" in str(failure.value)
    assert log == []


@virtual
@pytest.mark.parametrize("reason", ["boom", SHUTDOWN, NORMAL, Stopped("x")], ids=repr)
async def test_an_init_that_raises_exit_fails_the_start_for_that_reason(reason: Any) -> None:
    async with Scope():
        with pytest.raises(InitError) as failure:
            await start(Puppet, None, raising(Exit(reason)))

    assert failure.value.reason == reason


@virtual
@pytest.mark.parametrize("reason", ["boom", SHUTDOWN, NORMAL], ids=repr)
async def test_an_init_that_returns_stop_fails_the_start_without_terminate(reason: Any) -> None:
    log: Log = []

    async with Scope() as scope:
        with pytest.raises(InitError) as failure:
            await start(Puppet, log, lambda _: Stop(reason))

        assert scope.processes == []
    assert failure.value.reason == reason
    assert log == []


@virtual
async def test_a_server_that_ignores_its_start_says_so_and_ends_normally() -> None:
    class Recorded(GenServer):
        pids: ClassVar[list[Pid]] = []

        def init(self) -> None:
            self.pids.append(self.process.pid)
            raise Ignore

    async with Scope():
        with pytest.raises(Ignore):
            await start(Recorded)

        assert await Recorded.pids[0].wait() is NORMAL


@virtual
@pytest.mark.parametrize("value", [5, Reply(1), Stop(NORMAL, "reply")], ids=repr)
async def test_an_init_that_returns_nonsense_fails_the_start(value: Any) -> None:
    async with Scope():
        with pytest.raises(InitError) as failure:
            await start(Puppet, None, lambda _: value)

    assert isinstance(failure.value.reason, BadReturnError)
    assert failure.value.reason.callback == "init"
    assert failure.value.reason.value == value
    assert "init returned" in str(failure.value.reason)


@virtual
async def test_an_init_that_takes_too_long_is_killed_before_start_raises() -> None:
    pids: list[Pid] = []

    def setup(it: Puppet) -> Any:
        pids.append(it.process.pid)
        return anyio.sleep(100)

    async with Scope():
        with pytest.raises(InitError) as failure:
            await start(Puppet, None, setup, timeout=3)

        assert anyio.current_time() == 3
        assert pids[0].reason is KILLED
    assert isinstance(failure.value.reason, TimeoutError)
    assert "3" in str(failure.value.reason)


@virtual
async def test_a_start_within_its_time_goes_on_after_it() -> None:
    async with Scope():
        ref = await up(Puppet, None, lambda _: anyio.sleep(2), timeout=3)
        await anyio.sleep(10)

        assert ref.pid.alive


async def test_a_cancelled_start_leaves_nothing() -> None:
    async with Scope() as scope:
        with anyio.CancelScope() as cancelling:
            cancelling.cancel()
            await start(Puppet, None, lambda _: anyio.sleep(100))

        assert cancelling.cancelled_caught
        for pid in scope.processes:
            await pid.wait()
        assert scope.processes == []


@virtual
async def test_a_start_cancelled_while_init_waits_leaves_nothing() -> None:
    with Registry():
        async with Scope() as scope:
            with anyio.move_on_after(2):
                await start(Puppet, None, lambda _: anyio.sleep(100), name="it")

            assert scope.processes == []
            assert whereis("it") is None
            assert anyio.current_time() == 2


@virtual
async def test_a_start_cancelled_as_init_returns_leaves_nothing_or_a_handle() -> None:
    cancelling = anyio.CancelScope()
    ref = None

    async with Scope() as scope:
        with cancelling:
            ref = await start(Puppet, None, lambda _: cancelling.cancel())
        await ticks()

        assert (ref is not None) == bool(scope.processes)


@virtual
async def test_start_wants_a_scope() -> None:
    with pytest.raises(ScopeError):
        await start(Puppet)


@virtual
async def test_start_takes_a_scope() -> None:
    async with Scope("outer") as outer, Scope("inner") as inner:
        ref = await up(Puppet, scope=outer)

        assert outer.processes == [ref.pid]
        assert inner.processes == []


@virtual
async def test_a_process_is_called_as_the_label_or_the_class() -> None:
    class Labelled(Puppet):
        label = "front desk"

    async with Scope():
        assert "Puppet" in repr(await up(Puppet))
        assert "front desk" in repr((await up(Labelled)).pid)


@virtual
async def test_a_link_is_for_a_process_that_starts() -> None:
    async with Scope() as scope:
        with pytest.raises(NotInProcessError):
            await start(Puppet, link=True)

        assert scope.processes == []


@virtual
async def test_a_linked_server_and_its_starter_end_together() -> None:
    refs: list[ServerRef[Puppet]] = []

    async def starter() -> None:
        refs.append(await up(Puppet, link=True))
        await anyio.sleep(100)

    async with Scope():
        pid = spawn(starter)
        await ticks()
        refs[0].pid.exit("boom")

        assert await pid.wait() == "boom"


@virtual
async def test_a_failed_start_of_a_linked_server_is_reported_once() -> None:
    async def starter() -> list[object]:
        me = current_process()
        me.trap_exit = True
        with pytest.raises(InitError):
            await start(Puppet, None, raising(ValueError()), link=True)
        await ticks()
        return list(me.mailbox)

    seen: list[object] = []

    async def record() -> None:
        seen.append(await starter())

    async with Scope() as scope:
        await scope.spawn(record).wait()

    assert seen == [[]]


@virtual
async def test_start_monitor_tells_of_the_end() -> None:
    heard: list[object] = []

    async def watch() -> None:
        ref, monitor = await start_monitor(Puppet)
        cast(ref, lambda _: Stop("boom"))
        heard.append(await current_process().receive() == Down(monitor, ref.pid, "boom"))

    async with Scope() as scope:
        await scope.spawn(watch).wait()

    assert heard == [True]


@virtual
async def test_start_monitor_knows_why_it_ended_even_right_after_init() -> None:
    heard: list[object] = []

    async def watch() -> None:
        await start_monitor(Puppet, None, lambda _: NoReply(then=lambda _: Stop("boom")))
        heard.append((await current_process().receive()).reason)

    async with Scope() as scope:
        await scope.spawn(watch).wait()

    assert heard == ["boom"]


@virtual
async def test_start_monitor_is_for_processes_and_starts_nothing_for_others() -> None:
    async with Scope() as scope:
        with pytest.raises(NotInProcessError):
            await start_monitor(Puppet)

        assert scope.processes == []


@virtual
async def test_a_linked_starter_hears_of_an_end_right_after_init() -> None:
    heard: list[object] = []

    async def starter() -> None:
        me = current_process()
        me.trap_exit = True
        ref = await up(Puppet, None, lambda _: NoReply(then=lambda _: Stop("boom")), link=True)
        heard.append(await me.receive() == Exited(ref.pid, "boom"))

    async with Scope() as scope:
        await scope.spawn(starter).wait()

    assert heard == [True]


@virtual
async def test_a_cast_after_some_time_comes_then() -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log)

        async def clock() -> None:
            cast_after(3, ref, lambda it: it.log.append(("at", anyio.current_time())))
            await anyio.sleep(10)

        await spawn(clock).wait()

        assert log == [("at", 3)]


@virtual
async def test_a_handle_sends_infos() -> None:
    async with Scope():
        ref = await up(Puppet)

        assert ref.send("text")
        assert await call(ref, lambda it, _: it.log) == [("info", "text")]
        await ref.stop()
        assert not ref.send("text")


# Its name.


@virtual
async def test_a_name_that_is_taken_fails_the_start_without_running_init() -> None:
    log: Log = []

    with Registry():
        async with Scope() as scope:
            first = await up(Puppet, name="it")
            with pytest.raises(InitError) as failure:
                await start(Puppet, log, lambda it: it.log.append(("init",)), name="it")

            assert log == []
            assert whereis("it") == first.pid
            assert scope.processes == [first.pid]
    assert isinstance(failure.value.reason, AlreadyRegisteredError)
    assert failure.value.reason.pid == first.pid


@virtual
async def test_a_name_is_taken_while_the_other_is_still_in_init() -> None:
    with Registry():
        async with Scope(), anyio.create_task_group() as tg:
            tg.start_soon(up, Puppet, None, lambda _: anyio.sleep(100))
            free = anyio.Event()

            async def first() -> None:
                await start(Puppet, None, lambda _: free.wait(), name="it")

            tg.start_soon(first)
            await ticks()
            with pytest.raises(InitError) as failure:
                await start(Puppet, name="it")
            free.set()
            tg.cancel_scope.cancel()

    assert isinstance(failure.value.reason, AlreadyRegisteredError)


@virtual
@pytest.mark.parametrize(
    "setup",
    [raising(ValueError()), raising(Ignore()), lambda _: 5],
    ids=["raises", "ignores", "bad"],
)
async def test_a_name_is_free_again_before_a_failed_start_returns(setup: Any) -> None:
    with Registry():
        async with Scope():
            try:
                await start(Puppet, None, setup, name="it")
            except (InitError, Ignore):
                pass

            assert whereis("it") is None
            assert (await up(Puppet, name="it")).pid == whereis("it")


@virtual
async def test_a_name_is_free_again_before_a_start_times_out() -> None:
    with Registry():
        async with Scope():
            with pytest.raises(InitError):
                await start(Puppet, None, lambda _: anyio.sleep(100), name="it", timeout=1)

            assert whereis("it") is None


@virtual
async def test_a_server_is_addressed_by_name_via_and_pid() -> None:
    with Registry() as registry:
        async with Scope():
            ref = await up(Puppet, name="it")

            assert await call("it", 5) == 5
            assert await call(registry.via("it"), 5) == 5
            assert await call(ref.pid, 5) == 5
            assert await call(ref, 5) == 5


@virtual
async def test_a_second_server_with_a_name_of_its_own_is_the_one_that_is_called() -> None:
    with Registry():
        async with Scope():
            first = await up(Puppet, name="it")
            by_name = ServerRef("it", Puppet)
            await first.stop()
            with pytest.raises(ServerDownError) as failure:
                await call(by_name, 5)
            second = await up(Puppet, name="it")

            assert failure.value.reason is NOPROC
            assert await call(by_name, 5) == 5
            assert by_name.pid == second.pid


# What callbacks return.


async def test_what_handle_call_returns_is_the_answer() -> None:
    async with Scope():
        ref = await up(Puppet)

        for value in [None, 0, "text", NORMAL, (1, 2)]:
            assert await call(ref, lambda *_, value=value: value) == value


@virtual
async def test_reply_answers() -> None:
    async with Scope():
        ref = await up(Puppet)

        assert await call(ref, lambda *_: Reply(5)) == 5
        assert await call(ref, later(lambda *_: Reply(6))) == 6


@virtual
async def test_a_continue_comes_before_any_queued_message() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: NoReply(then="first"))
        cast(ref, "queued")
        log: Log = await call(ref, lambda it, _: it.log)

        assert log == [("continue", "first"), ("cast", "queued")]


@virtual
async def test_a_continue_comes_before_any_queued_message_after_init_too() -> None:
    log: Log = []

    def setup(it: Puppet) -> NoReply:
        it.process.pid.send("queued")
        return NoReply(then="first")

    async with Scope():
        ref = await up(Puppet, log, setup)
        await call(ref, None)

        assert log == [("continue", "first"), ("info", "queued")]


@virtual
async def test_a_reply_comes_before_the_continue_that_follows_it() -> None:
    async with Scope():
        ref = await up(Puppet)

        assert (
            await call(ref, lambda *_: Reply(5, then=later(lambda it: it.log.append(("x",))))) == 5
        )
        assert [entry[0] for entry in await call(ref, lambda it, _: it.log)] == ["continue", "x"]


@virtual
async def test_a_continue_may_be_followed_by_another() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: NoReply(then=lambda _: NoReply(then="second")))
        log = await call(ref, lambda it, _: it.log)

        assert [entry[0] for entry in log] == ["continue", "continue"]


@virtual
async def test_a_continue_with_none_is_a_continue() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: NoReply(then=None))

        assert await call(ref, lambda it, _: it.log) == [("continue", None)]


@virtual
async def test_a_server_that_continues_for_ever_lets_others_run_and_can_be_ended() -> None:
    class Busy(GenServer):
        def init(self) -> NoReply:
            self.rounds = 0
            return NoReply(then="on")

        def handle_continue(self, argument: Any) -> NoReply | Stop:
            self.rounds += 1
            return Stop("nobody ran") if self.rounds == 100_000 else NoReply(then="on")

    async with Scope():
        ref = await up(Busy)
        await ticks(5)
        ref.pid.exit(SHUTDOWN)

        assert await ref.wait() is SHUTDOWN


@virtual
async def test_casts_are_handled_in_order() -> None:
    async with Scope():
        ref = await up(Puppet)
        for number in range(250):
            cast(ref, number)
        log = await call(ref, lambda it, _: it.log)

        assert log == [("cast", number) for number in range(250)]


@virtual
async def test_a_cast_to_nobody_is_a_cast() -> None:
    with Registry() as registry:
        async with Scope():
            ref = await up(Puppet)
            await ref.stop()

            cast(ref, "text")
            cast(ref.pid, "text")
            cast("nobody", "text")
            cast(registry.via("nobody"), "text")
            assert not ref.pid.alive


@virtual
async def test_a_server_may_cast_to_itself_and_to_its_caller() -> None:
    async with Scope():
        ref = await up(Puppet)
        await call(ref, lambda it, _: cast(it.process.pid, "own"))

        assert await call(ref, lambda it, _: it.log) == [("cast", "own")]


@virtual
async def test_other_messages_are_infos() -> None:
    async with Scope():
        ref = await up(Puppet)
        ref.pid.send("text")
        ref.pid.send(Stop("boom"))

        assert await call(ref, lambda it, _: it.log) == [("info", "text"), ("info", Stop("boom"))]


@virtual
async def test_an_info_without_a_callback_is_dropped_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Deaf(GenServer):
        def handle_call(self, message: Any, from_: From) -> Any:
            return message

    async with Scope():
        ref = await up(Deaf)
        ref.pid.send("unheard-of")

        assert await call(ref, 5) == 5
    warned = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warned) == 1
    assert warned[0].getMessage() == f"{ref.pid!r} has no handle_info and was sent <str>"


@virtual
async def test_downs_and_exits_of_others_are_infos() -> None:
    async with Scope() as scope:
        log: Log = []
        ref = await up(Trapping, log)
        other = scope.spawn(anyio.sleep, 100, label="other")
        monitor = await call(ref, lambda it, _: it.process.monitor(other))
        await call(ref, lambda it, _: it.process.link(other))
        other.exit("boom")
        await other.wait()
        await call(ref, None)

        heard = [entry[1] for entry in log]
        assert Down(monitor, other, "boom") in heard
        assert Exited(other, "boom") in heard
        assert len(heard) == 2


UNKNOWN: dict[str, Callable[[ServerRef[Any]], object]] = {
    "call": lambda ref: call(ref, "what"),
    "cast": lambda ref: cast(ref, "what"),
}


@virtual
@pytest.mark.parametrize("kind", ["call", "cast", "continue", "timeout"])
async def test_a_request_without_a_callback_ends_the_server(kind: str) -> None:
    class Blank(GenServer):
        def init(self) -> Any:
            if kind == "continue":
                return NoReply(then="what")
            return NoReply(timeout=0) if kind == "timeout" else None

    async with Scope():
        ref = await up(Blank)
        if kind == "call":
            with pytest.raises(ServerDownError):
                await call(ref, "what")
        elif kind == "cast":
            cast(ref, "what")
        reason = await ref.wait()

        assert isinstance(reason, UnknownRequestError)
        assert (reason.server, reason.kind) == ("Blank", kind)
        assert f"Blank has no handle_{kind}" in str(reason)


SEND: dict[str, Callable[[ServerRef[Any], Any], object]] = {
    "handle_cast": lambda ref, fn: cast(ref, fn),
    "handle_info": lambda ref, fn: ref.pid.send(fn),
    "handle_continue": lambda ref, fn: cast(ref, lambda _: NoReply(then=fn)),
}
"""How to have a callback run a function."""


@virtual
@pytest.mark.parametrize("value", [5, Reply(5), Stop(NORMAL, "to whom?")], ids=repr)
@pytest.mark.parametrize("callback", SEND)
async def test_a_bad_return_ends_the_server_after_terminate(callback: str, value: Any) -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log)
        SEND[callback](ref, lambda _: value)
        reason = await ref.wait()

    assert isinstance(reason, BadReturnError)
    assert (reason.callback, reason.value) == (callback, value)
    assert log[-1] == ("terminate", reason)


@virtual
@pytest.mark.parametrize("wrap", [lambda fn: fn, later], ids=["plain", "async"])
@pytest.mark.parametrize("callback", SEND)
async def test_what_a_callback_raises_ends_the_server_after_terminate(
    callback: str, wrap: Callable[[Any], Any]
) -> None:
    log: Log = []
    error = ValueError("broken")

    async with Scope():
        ref = await up(Puppet, log)
        SEND[callback](ref, wrap(raising(error)))
        reason = await ref.wait()

    assert reason is error
    assert log[-1] == ("terminate", error)


@virtual
@pytest.mark.parametrize("wrap", [lambda fn: fn, later], ids=["plain", "async"])
async def test_what_handle_call_raises_ends_the_server_and_the_caller_hears_why(
    wrap: Callable[[Any], Any],
) -> None:
    log: Log = []
    error = ValueError("broken")

    async with Scope():
        ref = await up(Puppet, log)
        with pytest.raises(ServerDownError) as failure:
            await call(ref, wrap(raising(error)))

        assert failure.value.reason is error
        assert await ref.wait() is error
    assert log == [("terminate", error)]


@virtual
async def test_what_handle_timeout_raises_ends_the_server() -> None:
    class Impatient(Puppet):
        def handle_timeout(self) -> Any:
            raise ValueError

    log: Log = []

    async with Scope():
        ref = await up(Impatient, log, lambda _: NoReply(timeout=0))

        assert isinstance(await ref.wait(), ValueError)
    assert [entry[0] for entry in log] == ["terminate"]


@virtual
@pytest.mark.parametrize("callback", SEND)
async def test_any_callback_may_stop_the_server(callback: str) -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log)
        SEND[callback](ref, lambda _: Stop("enough"))

        assert await ref.wait() == "enough"
    assert log[-1] == ("terminate", "enough")


@virtual
async def test_a_server_may_stop_at_a_timeout() -> None:
    class Impatient(Puppet):
        def handle_timeout(self) -> Stop:
            return Stop()

    async with Scope():
        ref = await up(Impatient, None, lambda _: NoReply(timeout=0))

        assert await ref.wait() is NORMAL


@virtual
@pytest.mark.parametrize("reason", [SHUTDOWN, NORMAL, "boom", Stopped(1)], ids=repr)
async def test_exit_raised_in_a_callback_is_a_stop(
    reason: Any, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log)
        cast(ref, raising(Exit(reason)))

        assert await ref.wait() == reason
    assert log == [("terminate", reason)]
    assert bool(caplog.records) == (reason == "boom")


@virtual
async def test_stop_with_a_reply_answers_after_terminate_and_before_the_end() -> None:
    seen: list[object] = []

    class Closing(GenServer):
        async def handle_call(self, message: Any, from_: From) -> Stop:
            return Stop("done", "bye")

        async def terminate(self, reason: Any) -> None:
            await ticks()
            seen.append("terminate")

    async with Scope():
        ref = await up(Closing)
        answer = await call(ref, "close")
        seen.append("answer")

        assert answer == "bye"
        assert await ref.wait() == "done"
    assert seen == ["terminate", "answer"]


@virtual
@pytest.mark.parametrize("reason", [NORMAL, SHUTDOWN, "boom"], ids=repr)
async def test_stop_without_a_reply_gives_the_caller_the_reason(reason: Any) -> None:
    async with Scope():
        ref = await up(Puppet)
        with pytest.raises(ServerDownError) as failure:
            await call(ref, lambda *_: Stop(reason))

        assert failure.value.reason == reason


@virtual
async def test_a_reply_of_none_with_a_stop_is_a_reply() -> None:
    async with Scope():
        ref = await up(Puppet)

        assert await call(ref, lambda *_: Stop(NORMAL, None)) is None


@virtual
async def test_the_reply_with_a_stop_is_not_sent_if_terminate_raises() -> None:
    error = ValueError("terminate")

    class Clumsy(Puppet):
        def terminate(self, reason: Any) -> None:
            raise error

    async with Scope():
        ref = await up(Clumsy)
        with pytest.raises(ServerDownError) as failure:
            await call(ref, lambda *_: Stop(NORMAL, "bye"))

        assert failure.value.reason is error


@virtual
async def test_ignore_raised_after_the_start_is_an_error_like_any() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, raising(Ignore()))

        assert isinstance(await ref.wait(), Ignore)


# Timeouts that callbacks give.


@virtual
@pytest.mark.parametrize("when", ["init", "call", "noreply", "cast", "info", "continue"])
async def test_a_timeout_fires_after_silence(when: str) -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log, (lambda _: NoReply(timeout=3)) if when == "init" else None)
        match when:
            case "call":
                assert await call(ref, lambda *_: Reply("answer", timeout=3)) == "answer"
            case "noreply":
                with anyio.move_on_after(0):
                    await call(ref, lambda *_: NoReply(timeout=3))
                await call(ref, lambda *_: Reply(None, timeout=3))
            case "cast":
                cast(ref, lambda _: NoReply(timeout=3))
            case "info":
                ref.pid.send(lambda _: NoReply(timeout=3))
            case "continue":
                cast(ref, lambda _: NoReply(then=lambda _: NoReply(timeout=3)))
            case _:
                assert when == "init"
        await anyio.sleep(20)

    assert [entry for entry in log if entry[0] == "timeout"] == [("timeout", 3)]


@virtual
@pytest.mark.parametrize("kind", ["cast", "info", "call"])
async def test_any_message_takes_a_timeout_back(kind: str) -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log, lambda _: NoReply(timeout=3))
        await anyio.sleep(2)
        if kind == "cast":
            cast(ref, "text")
        elif kind == "info":
            ref.pid.send("text")
        else:
            await call(ref, "text")
        await anyio.sleep(20)

    assert [entry for entry in log if entry[0] == "timeout"] == []


@virtual
async def test_a_system_message_restarts_a_timeout_in_full() -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log, lambda _: NoReply(timeout=3))
        await anyio.sleep(2)
        await system.get_state(ref)
        await anyio.sleep(20)

    assert log[:1] == [("timeout", 5)]


@virtual
async def test_a_timeout_fires_once() -> None:
    log: Log = []

    async with Scope():
        await up(Puppet, log, lambda _: NoReply(timeout=1))
        await anyio.sleep(20)

        assert log == [("timeout", 1)]


@virtual
async def test_a_timeout_can_be_given_again_each_time() -> None:
    class Ticking(Puppet):
        def handle_timeout(self) -> NoReply:
            super().handle_timeout()
            return NoReply(timeout=2)

    log: Log = []

    async with Scope():
        await up(Ticking, log, lambda _: NoReply(timeout=1))
        await anyio.sleep(6)

        assert log == [("timeout", 1), ("timeout", 3), ("timeout", 5)]


@virtual
async def test_a_timeout_of_zero_comes_at_once_but_after_queued_messages() -> None:
    log: Log = []

    def setup(it: Puppet) -> NoReply:
        it.log.append(("init",))
        return NoReply(timeout=0)

    async with Scope():
        ref = await up(Puppet, log, setup)
        await anyio.sleep(1)
        cast(ref, lambda _: NoReply(timeout=0))
        cast(ref, "queued")
        await anyio.sleep(1)

    assert log == [("init",), ("timeout", 0), ("cast", "queued"), ("terminate", SHUTDOWN)][:3]


@virtual
async def test_a_suspended_server_does_not_time_out_before_it_goes_on() -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log, lambda _: NoReply(timeout=3))
        await system.suspend(ref)
        await anyio.sleep(10)
        assert log == []
        await system.resume(ref)
        await anyio.sleep(10)

        assert log == [("timeout", 13)]


# Its end.


async def test_a_kill_ends_it_without_terminate() -> None:
    log: Log = []

    async with Scope():
        ref = await up(Trapping, log)
        ref.pid.exit(KILL)

        assert await ref.wait() is KILLED
    assert log == []


@virtual
@pytest.mark.parametrize("reason", [SHUTDOWN, "boom"], ids=repr)
async def test_an_exit_signal_ends_one_that_does_not_trap_without_terminate(reason: Any) -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log)
        ref.pid.exit(reason)

        assert await ref.wait() == reason
    assert log == []


@virtual
async def test_an_exit_signal_cancels_the_callback_that_runs_and_its_caller_hears_why() -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        failures: list[ServerDownError] = []

        async def ask() -> None:
            with pytest.raises(ServerDownError) as failure:
                await call(ref, lambda *_: anyio.sleep(100))
            failures.append(failure.value)

        tg.start_soon(ask)
        await ticks()
        ref.pid.exit("boom")

    assert failures[0].reason == "boom"


@virtual
async def test_the_exit_of_its_parent_ends_one_that_traps_by_terminate() -> None:
    log: Log = []
    refs: list[ServerRef[Trapping]] = []

    async def parent() -> None:
        refs.append(await up(Trapping, log, link=True))
        await current_process().receive()
        raise Exit("boom")

    async with Scope():
        pid = spawn(parent)
        await ticks()
        pid.send("end")

        assert await refs[0].wait() == "boom"
    assert log == [("terminate", "boom")]


@virtual
async def test_the_normal_exit_of_its_parent_ends_one_that_traps_too() -> None:
    log: Log = []

    async def parent() -> None:
        await up(Trapping, log, link=True)

    async with Scope():
        await spawn(parent).wait()
        await ticks()

        assert log == [("terminate", NORMAL)]


@virtual
async def test_an_exit_signal_of_another_process_is_an_info_to_one_that_traps() -> None:
    log: Log = []
    ref: ServerRef[Trapping]

    async def other() -> None:
        ref.pid.exit("boom")

    async with Scope():
        ref = await up(Trapping, log)
        pid = spawn(other)
        await pid.wait()
        await call(ref, None)

        assert log == [("info", Exited(pid, "boom"))]


@virtual
async def test_an_exit_signal_of_who_started_it_without_a_link_is_an_info_too() -> None:
    log: Log = []

    async def starter() -> None:
        ref = await up(Trapping, log)
        ref.pid.exit("boom")
        await call(ref, None)
        assert log == [("info", Exited(current_process().pid, "boom"))]

    async with Scope():
        assert await spawn(starter).wait() is NORMAL


@virtual
async def test_an_exit_signal_from_no_process_is_an_info_to_one_that_traps() -> None:
    log: Log = []

    async with Scope():
        ref = await up(Trapping, log)
        ref.pid.exit("boom")
        await ticks()

        assert log == [("info", Exited(None, "boom"))]


@virtual
async def test_the_end_of_its_scope_ends_one_that_traps_by_terminate() -> None:
    log: Log = []

    async with Scope():
        await up(Trapping, log)

    assert log == [("terminate", SHUTDOWN)]


@virtual
@pytest.mark.parametrize("how", ["scope", "signal", "crash"])
async def test_an_end_from_above_comes_between_two_messages_however_many_wait(how: str) -> None:
    log: Log = []
    refs: list[ServerRef[Trapping]] = []
    sent = anyio.Event()
    many = 20_000

    async def parent() -> None:
        ref = await up(Trapping, log, link=True)
        refs.append(ref)
        for number in range(many):
            cast(ref, number)
        sent.set()
        if how == "signal":
            ref.pid.exit("boom")
        elif how == "crash":
            raise Exit("boom")
        await ref.wait()

    async with Scope():
        spawn(parent)
        await sent.wait()
        if how != "scope":
            await refs[0].wait()

    assert log[-1] == ("terminate", SHUTDOWN if how == "scope" else "boom")
    assert len(log) < many / 2


@virtual
@pytest.mark.parametrize("how", ["signal", "crash", "normal"])
async def test_an_end_from_above_ends_a_suspended_server(how: str) -> None:
    log: Log = []
    refs: list[ServerRef[Trapping]] = []

    async def parent() -> None:
        ref = await up(Trapping, log, link=True)
        refs.append(ref)
        await system.suspend(ref)
        if how == "signal":
            ref.pid.exit("boom")
            await current_process().receive()
        elif how == "crash":
            raise Exit("boom")

    reason = NORMAL if how == "normal" else "boom"
    async with Scope():
        spawn(parent)
        await anyio.sleep(1)

        assert refs[0].pid.reason == reason
    assert log == [("terminate", reason)]


@virtual
async def test_a_kill_ends_a_suspended_server() -> None:
    async with Scope():
        ref = await up(Trapping)
        await system.suspend(ref)
        ref.pid.exit(KILL)

        assert await ref.wait() is KILLED


@virtual
async def test_a_shutdown_waits_for_the_callback_that_runs() -> None:
    log: Log = []

    async def work(it: Puppet) -> None:
        await ticks()
        it.log.append(("worked",))

    async with Scope():
        ref = await up(Trapping, log)
        cast(ref, work)
        cast(ref, "queued")
        await ticks(3)

    assert log == [("worked",), ("terminate", SHUTDOWN)]


@virtual
async def test_a_terminate_that_raises_decides_the_reason() -> None:
    error = ValueError("terminate")

    class Clumsy(Puppet):
        async def terminate(self, reason: Any) -> None:
            raise error

    async with Scope():
        by_stop, by_crash = await up(Clumsy), await up(Clumsy)
        cast(by_stop, lambda _: Stop())
        cast(by_crash, raising(KeyError()))

        assert await by_stop.wait() is error
        assert await by_crash.wait() is error


async def test_a_call_during_terminate_waits_and_gets_the_reason() -> None:
    entered = anyio.Event()

    class Slow(Puppet):
        async def terminate(self, reason: Any) -> None:
            entered.set()
            await ticks()

    async with Scope():
        ref = await up(Slow)
        cast(ref, lambda _: Stop(NORMAL))
        await entered.wait()
        with pytest.raises(ServerDownError) as failure:
            await call(ref, 5)

        assert failure.value.reason is NORMAL
        assert not ref.pid.alive


@virtual
@pytest.mark.parametrize("signal", ["boom", KILL], ids=repr)
@pytest.mark.parametrize("options", [{"capacity": 5}, {}], ids=["bounded", "unbounded"])
async def test_a_signal_that_comes_between_two_messages_ends_it_before_the_second(
    signal: object, options: dict[str, Any]
) -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log, **options)
        cast(ref, lambda it: it.process.pid.exit(signal))
        cast(ref, "never")

        assert await ref.wait() == (KILLED if signal is KILL else signal)
    assert log == []


@virtual
@pytest.mark.parametrize("trapping", [True, False])
async def test_a_shutdown_of_its_pid_is_as_that_of_a_supervisor(trapping: bool) -> None:
    log: Log = []

    async with Scope():
        ref = await up(Trapping if trapping else Puppet, log)
        for number in range(1000):
            cast(ref, number)
        ref.pid.shutdown()

        assert await ref.wait() is SHUTDOWN
    assert log == ([("terminate", SHUTDOWN)] if trapping else [])


# drain().


@virtual
@pytest.mark.parametrize("options", [{"capacity": 200}, {}], ids=["bounded", "unbounded"])
async def test_a_drained_server_handles_what_it_has_and_ends(options: dict[str, Any]) -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log, **options)
        for number in range(150):
            cast(ref, number)
        answer = send_request(ref, "answer")
        ref.drain()
        cast(ref, "too late")
        with pytest.raises(ServerDownError):
            await call(ref, "too late")

        assert not ref.pid.send("too late")
        assert await receive_response(answer) == "answer"
        assert await ref.wait() == Stopped("drained")
    numbers = [("cast", number) for number in range(150)]
    assert log == [*numbers, ("terminate", Stopped("drained"))]


@virtual
async def test_a_server_can_be_drained_twice_and_after_its_end() -> None:
    async with Scope():
        ref = await up(Puppet)
        ref.drain()
        ref.drain()
        assert await ref.wait() == Stopped("drained")
        ref.drain()

        assert ref.pid.reason == Stopped("drained")


@virtual
async def test_an_idle_server_and_one_with_a_timeout_are_drained_at_once() -> None:
    async with Scope():
        idle, impatient = await up(Puppet), await up(Puppet, None, lambda _: NoReply(timeout=100))
        await anyio.sleep(1)
        idle.drain()
        impatient.drain()

        assert await idle.wait() == await impatient.wait() == Stopped("drained")
        assert anyio.current_time() == 1


@virtual
async def test_a_suspended_server_is_drained_once_it_goes_on() -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log)
        await system.suspend(ref)
        cast(ref, "queued")
        ref.drain()
        await anyio.sleep(1)
        assert ref.pid.alive
        await system.resume(ref)

        assert await ref.wait() == Stopped("drained")
    assert log[0] == ("cast", "queued")


@virtual
async def test_a_drained_server_can_still_be_stopped_and_killed() -> None:
    async with Scope():
        stopped, killed = await up(Puppet), await up(Puppet)
        for ref in (stopped, killed):
            cast(ref, lambda _: anyio.sleep(1000))
            ref.drain()
        await anyio.sleep(1)
        killed.pid.exit(KILL)
        assert await killed.wait() is KILLED
        with pytest.raises((ServerDownError, TimeoutError)):
            await stop(stopped, timeout=2000)

        assert stopped.pid.reason == Stopped("drained")


# stop().


async def test_stop_ends_after_all_that_was_sent_before() -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log)
        for number in range(200):
            cast(ref, number)
        await stop(ref)

        assert ref.pid.reason is NORMAL
    assert log == [*(("cast", number) for number in range(200)), ("terminate", NORMAL)]


@virtual
@pytest.mark.parametrize("reason", [SHUTDOWN, "boom", Stopped(1)], ids=repr)
async def test_stop_for_a_reason(reason: Any) -> None:
    log: Log = []

    async with Scope():
        ref = await up(Puppet, log)
        await ref.stop(reason)

        assert ref.pid.reason == reason
    assert log == [("terminate", reason)]


@virtual
async def test_stop_tells_if_it_ended_for_another_reason() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: Stop("other"))
        with pytest.raises(ServerDownError) as failure:
            await stop(ref)

        assert failure.value.reason == "other"


@virtual
async def test_stop_tells_what_terminate_raised() -> None:
    error = ValueError()

    class Clumsy(Puppet):
        def terminate(self, reason: Any) -> None:
            raise error

    async with Scope():
        ref = await up(Clumsy)
        with pytest.raises(ServerDownError) as failure:
            await stop(ref)

        assert failure.value.reason is error


@virtual
async def test_stop_of_one_that_has_ended_says_so() -> None:
    with Registry():
        async with Scope():
            ref = await up(Puppet)
            await stop(ref)
            targets: list[Server] = [ref, ref.pid, "nobody"]
            for target in targets:
                with pytest.raises(ServerDownError) as failure:
                    await stop(target)

                assert failure.value.reason is NOPROC


@virtual
async def test_stop_that_takes_too_long_leaves_it_running_but_ending() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: anyio.sleep(5))
        with pytest.raises(TimeoutError):
            await stop(ref, timeout=2)

        assert ref.pid.alive
        assert anyio.current_time() == 2
        assert await ref.wait() is NORMAL
        assert anyio.current_time() == 5


@virtual
async def test_stop_ends_a_suspended_server() -> None:
    async with Scope():
        ref = await up(Puppet)
        await system.suspend(ref)
        await stop(ref, timeout=5)

        assert ref.pid.reason is NORMAL


@virtual
async def test_a_server_that_stops_itself_is_refused_instead_of_waiting_for_itself() -> None:
    async with Scope():
        ref = await up(Puppet)
        with pytest.raises(ServerDownError) as failure:
            await call(ref, lambda it, _: stop(it.process.pid), timeout=60)

        assert "CallingSelf" in repr(failure.value.reason)


@virtual
@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST], ids=str)
async def test_stop_ends_a_server_whose_mailbox_is_full(overflow: Overflow) -> None:
    async with Scope():
        ref = await up(Puppet, capacity=1, overflow=overflow)
        cast(ref, lambda _: anyio.sleep(1))
        await anyio.lowlevel.checkpoint()
        cast(ref, "queued")
        with anyio.fail_after(60):
            await stop(ref)

        assert ref.pid.reason is NORMAL


# Bounded mailboxes.


@virtual
async def test_a_call_to_a_full_mailbox_is_refused_and_leaves_nothing() -> None:
    async with Scope():
        ref = await up(Puppet, capacity=1)
        cast(ref, lambda _: anyio.sleep(1))
        await anyio.sleep(0.5)
        cast(ref, "queued")
        with pytest.raises(MailboxFullError):
            await call(ref, 5)
        with pytest.raises(MailboxFullError):
            cast(ref, "one too many")
        await anyio.sleep(1)

        assert await call(ref, 5) == 5
        assert await call(ref, lambda it, _: it.log) == [("cast", "queued")]


@virtual
async def test_a_bounded_mailbox_serves_in_order_and_answers_system_messages_when_full() -> None:
    async with Scope():
        ref = await up(Puppet, capacity=2, overflow=Overflow.DROP_OLDEST)
        await system.suspend(ref)
        for number in range(5):
            cast(ref, number)
        status = await system.get_status(ref)
        await system.resume(ref)
        await anyio.sleep(1)

        assert (status.mailbox, status.suspended) == (2, True)
        assert await call(ref, lambda it, _: it.log) == [("cast", 3), ("cast", 4)]


@virtual
async def test_a_request_to_stop_is_never_dropped() -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet, capacity=1, overflow=Overflow.DROP_OLDEST)
        cast(ref, lambda _: anyio.sleep(1))
        await anyio.lowlevel.checkpoint()
        cast(ref, "queued")
        tg.start_soon(stop, ref)
        await anyio.lowlevel.checkpoint()
        for number in range(3):
            cast(ref, number)

        with anyio.fail_after(60):
            assert await ref.wait() is NORMAL


@virtual
@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST], ids=str)
async def test_a_call_that_a_full_mailbox_drops_raises_at_once(overflow: Overflow) -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet, capacity=1, overflow=overflow)
        await system.suspend(ref)
        dropped: list[tuple[object, float]] = []

        async def ask(request: str) -> None:
            with pytest.raises((CallTimeoutError, MailboxFullError)) as caught:
                await call(ref, request, timeout=5)
            if isinstance(caught.value, MailboxFullError):
                dropped.append((request, anyio.current_time()))

        tg.start_soon(ask, "first")
        await anyio.sleep(1)
        tg.start_soon(ask, "second")

    assert dropped == [("first" if overflow is Overflow.DROP_OLDEST else "second", 1)]


# Reports.


@virtual
async def test_a_crash_is_reported_with_its_message_and_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Telling(Puppet):
        def format_status(self, status: dict[str, Any]) -> dict[str, Any]:
            return status

        def handle_cast(self, message: Any) -> None:
            raise ValueError("broken")

    async with Scope():
        ref = await up(Telling, [("memory",)])
        cast(ref, "the last straw")
        await ref.wait()

    report = "\n".join(record.getMessage() for record in caplog.records)
    assert "the last straw" in report
    assert "broken" in report
    assert "memory" in report


@virtual
@pytest.mark.parametrize("reason", ["boom", NORMAL, SHUTDOWN, Stopped(1)], ids=repr)
async def test_a_stop_is_reported_unless_it_is_a_good_one(
    reason: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: Stop(reason))
        await ref.wait()

    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert bool(errors) == (reason == "boom")


@virtual
async def test_a_report_leaves_out_the_state_by_default(caplog: pytest.LogCaptureFixture) -> None:
    async with Scope():
        ref = await up(Puppet, [("password", "hunter2")])
        cast(ref, raising(ValueError()))
        await ref.wait()

    assert "hunter2" not in caplog.text


@virtual
@pytest.mark.parametrize("wrap", [lambda fn: fn, later], ids=["plain", "async"])
async def test_format_status_redacts_reports_and_statuses(
    wrap: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Discreet(Puppet):
        def format_status(self, status: dict[str, Any]) -> Any:
            return wrap(lambda: {**status, "state": "redacted", "message": "censored"})()

    log: Log = []

    async with Scope():
        ref = await up(Discreet, log)
        status = await system.get_status(ref)
        cast(ref, "hunter2")
        cast(ref, raising(ValueError("reason")))
        await ref.wait()

    assert status.state == "redacted"
    assert "redacted" in caplog.text
    assert "censored" in caplog.text
    assert "hunter2" not in caplog.text
    assert log[-1][0] == "terminate"


@virtual
@pytest.mark.parametrize("result", [ValueError("format"), None, 5], ids=repr)
async def test_a_format_status_that_fails_does_not_change_how_it_ends(
    result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Clumsy(Puppet):
        def format_status(self, status: dict[str, Any]) -> Any:
            if isinstance(result, Exception):
                raise result
            return result

    log: Log = []
    error = KeyError("the true reason")

    async with Scope():
        ref = await up(Clumsy, log)
        cast(ref, raising(error))

        assert await ref.wait() is error
    assert log == [("terminate", error)]
    assert "the true reason" in caplog.text


# Under a supervisor.


class Counter(GenServer):
    """Counts, and can be made to crash."""

    def init(self, first: int = 0) -> None:
        self.n = first

    @on_call
    def add(self, k: int = 1) -> int:
        self.n += k
        return self.n

    def handle_cast(self, message: Any) -> None:
        raise ValueError(message)


def test_a_class_that_a_supervisor_is_given_is_refused_with_what_to_write() -> None:
    with pytest.raises(SpecError) as caught:
        Supervisor([Counter])  # type: ignore[list-item]

    assert str(caught.value) == (
        "child 'Counter': run must be an async function; Counter is a class: "
        "write child_spec(Counter, ...)"
    )


@virtual
async def test_a_supervised_server_is_restarted_with_a_fresh_state() -> None:
    async with Supervisor([child_spec(Counter, 7)]) as supervisor:
        first = supervisor.which_child("Counter").value
        assert await first.call(Counter.add) == 8
        cast(first, "boom")
        await anyio.sleep(1)
        second = supervisor.which_child("Counter").value

        assert second != first
        assert await second.call(Counter.add) == 8
        with pytest.raises(ServerDownError):
            await first.call(Counter.add)


@virtual
async def test_a_supervised_server_keeps_its_name_over_a_restart() -> None:
    with Registry():
        async with Supervisor([child_spec(Counter, name="counter", kwargs={"first": 3})]) as sup:
            ref = ServerRef("counter", Counter)
            assert await ref.call(Counter.add) == 4
            ref.pid.exit(KILL)
            await anyio.sleep(1)

            assert await ref.call(Counter.add) == 4
            assert sup.which_child("counter").value.pid == ref.pid


@virtual
async def test_a_supervised_server_that_does_not_start_says_why() -> None:
    error = ValueError("no such file")

    with pytest.raises(ChildStartError) as failure:
        async with Supervisor([child_spec(Puppet, None, raising(error))]):
            pytest.fail("it started")

    assert failure.value.__cause__ is error


@virtual
async def test_a_supervised_server_that_returns_stop_from_init_does_not_start() -> None:
    with pytest.raises(ChildStartError) as failure:
        async with Supervisor([child_spec(Puppet, None, lambda _: Stop("no"))]):
            pytest.fail("it started")

    cause = failure.value.__cause__
    assert isinstance(cause, Exit)
    assert cause.reason == "no"


@virtual
async def test_a_supervised_server_that_ignores_its_start_is_no_failure() -> None:
    specs = [child_spec(Puppet, None, raising(Ignore())), child_spec(Counter)]

    async with Supervisor(specs) as supervisor:
        assert supervisor.which_child("Puppet").value is None
        assert await supervisor.which_child("Counter").value.call(Counter.add) == 1


@virtual
async def test_the_supervisor_waits_for_init() -> None:
    log: Log = []

    async def setup(it: Puppet) -> None:
        await ticks()
        it.log.append(("init", 1))

    specs = [
        child_spec(Puppet, log, setup, id="first"),
        child_spec(Puppet, log, lambda it: it.log.append(("init", 2)), id="second"),
    ]
    async with Supervisor(specs):
        assert log == [("init", 1), ("init", 2)]


@pytest.mark.parametrize("kind", [Puppet, Trapping])
async def test_a_supervisor_shuts_servers_down(kind: type[Puppet]) -> None:
    log: Log = []

    async with Supervisor([child_spec(kind, log)]) as supervisor:
        pid = supervisor.which_child(kind.__name__).value.pid

    assert pid.reason is SHUTDOWN
    assert log == ([("terminate", SHUTDOWN)] if kind is Trapping else [])


@pytest.mark.heavy
@virtual
async def test_a_supervisor_shuts_a_trapping_server_down_between_two_messages() -> None:
    log: Log = []

    async with Supervisor([child_spec(Trapping, log)]) as supervisor:
        ref = supervisor.which_child("Trapping").value
        for number in range(100_000):
            cast(ref, number)

    assert log[-1] == ("terminate", SHUTDOWN)
    assert len(log) < 1000


@virtual
async def test_a_supervisor_kills_a_server_that_does_not_end_in_time() -> None:
    class Stubborn(Trapping):
        async def terminate(self, reason: Any) -> None:
            await anyio.sleep(100)

    heard: list[object] = []
    spec = child_spec(Stubborn, shutdown=2.0)
    async with Supervisor([spec], subscribers=[heard.append]) as supervisor:
        pid = supervisor.which_child("Stubborn").value.pid

    assert pid.reason is KILLED
    assert anyio.current_time() == 2
    assert any(isinstance(event, ChildKilled) for event in heard)


@virtual
async def test_a_suspended_server_is_shut_down_by_its_supervisor() -> None:
    log: Log = []

    async with Supervisor([child_spec(Trapping, log)]) as supervisor:
        ref = supervisor.which_child("Trapping").value
        await system.suspend(ref)
        cast(ref, "never")

    assert log == [("terminate", SHUTDOWN)]
    assert anyio.current_time() == 0


@virtual
async def test_a_stop_in_good_order_restarts_no_transient_server() -> None:
    async with Supervisor([child_spec(Puppet, restart=Restart.TRANSIENT)]) as supervisor:
        ref = supervisor.which_child("Puppet").value
        await ref.stop(SHUTDOWN)
        await anyio.sleep(1)

        assert supervisor.which_child("Puppet").value in (None, ref)
        assert not ref.pid.alive


@virtual
async def test_a_registered_server_cannot_take_a_second_name() -> None:
    with Registry():
        async with Scope():
            ref = await up(Puppet, name="it")
            with pytest.raises(ServerDownError) as failure:
                await call(ref, lambda *_: register("other"))

            assert isinstance(failure.value.reason, AlreadyRegisteredError)


@virtual
async def test_no_reply_is_readable() -> None:
    assert repr(NO_REPLY) == "NO_REPLY"


@virtual
async def test_a_server_on_its_way_up_can_be_talked_to_and_waited_for() -> None:
    free = anyio.Event()
    async with Scope(), anyio.create_task_group() as tg:
        startup = start_soon(Puppet, None, lambda _: free.wait())
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await call(startup.ref, lambda it, from_: "up"))

        tg.start_soon(ask)
        await ticks()
        assert not answers
        free.set()
        assert await startup.wait() == startup.ref
        await ticks()
        assert answers == ["up"]


@virtual
async def test_a_server_that_does_not_come_up_in_the_time_that_is_left_is_killed() -> None:
    async with Scope():
        startup = start_soon(Puppet, None, lambda _: anyio.sleep(100))
        with pytest.raises(InitError, match="more than 2 seconds"):
            await startup.wait(2)

        assert startup.ref.pid.reason is KILLED


# What a handler's own task group raises.


async def in_a_group(error: Exception) -> None:
    async def fail() -> None:
        raise error

    async with anyio.create_task_group() as tg:
        tg.start_soon(fail)


@virtual
async def test_an_exit_out_of_a_handlers_task_group_is_an_exit() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: in_a_group(Exit(Stopped("done"))))

        assert await ref.wait() == Stopped("done")


@virtual
async def test_a_reply_error_out_of_a_handlers_task_group_is_the_callers() -> None:
    async with Scope():
        ref = await up(Puppet)
        with pytest.raises(LookupError, match="no such key"):
            await call(ref, lambda it, _: in_a_group(ReplyError(LookupError("no such key"))))

        assert await call(ref, 5) == 5


@virtual
async def test_any_other_group_ends_the_server_as_it_is() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: in_a_group(ValueError("no")))
        reason = await ref.wait()

        assert isinstance(reason, ExceptionGroup)
        assert repr(reason.exceptions) == "(ValueError('no'),)"


# What may happen while it falls asleep.


class Contested(deque[Any]):
    """A mailbox into which another thread puts something as soon as it is found empty."""

    def __init__(self, late: Callable[[], object]) -> None:
        super().__init__()
        self.late = [late]

    def __len__(self) -> int:
        size = super().__len__()
        if not size and self.late:
            self.late.pop()()
        return size


@virtual
async def test_what_comes_between_its_last_look_and_its_sleep_is_handled_at_once() -> None:
    def setup(puppet: Puppet) -> None:
        process = puppet.process
        process.mailbox = Contested(lambda: process.deliver("late"))

    log: Log = []
    async with Scope():
        ref = await start(Puppet, log, setup)
        await anyio.sleep(1)
        assert log == [("info", "late")]
        await stop(ref)


@virtual
async def test_one_whose_messages_another_task_waits_for_ends_for_that() -> None:
    async def busy(puppet: Puppet, _: From) -> str:
        await anyio.sleep(1)
        return "done"

    async with Scope(), anyio.create_task_group() as tg:
        ref = await start(Puppet)
        request = send_request(ref, busy)
        await anyio.sleep(0.5)
        tg.start_soon(ref.pid._process.receive)  # by then the server is at work

        assert await receive_response(request) == "done"
        assert isinstance(await ref.wait(), anyio.BusyResourceError)
        tg.cancel_scope.cancel()
