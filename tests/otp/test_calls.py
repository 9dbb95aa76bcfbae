"""Calls: one answer or the reason why there is none, and nothing that comes too late."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import math
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio.abc import TaskGroup

from backplane.lowlevel import set_alarm
from backplane.otp import (
    KILL,
    KILLED,
    NO_REPLY,
    NOPROC,
    NORMAL,
    SHUTDOWN,
    CallError,
    CallingSelfError,
    CallTimeoutError,
    From,
    GenServer,
    InitError,
    MailboxFullError,
    NoReply,
    Overflow,
    Pid,
    ProcessError,
    Requests,
    Scope,
    Server,
    ServerDownError,
    ServerRef,
    Stop,
    call,
    cast,
    child_spec,
    current_process,
    multi_call,
    receive_response,
    reply,
    send_request,
    spawn,
    start,
    start_soon,
    stop,
    system,
    wait_response,
)
from backplane.otp._registry import Registry
from backplane.supervisor import DynamicSupervisor, Restart

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)
real = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
S = TypeVar("S", bound=GenServer)


class Puppet(GenServer):
    """Does whatever function it is sent, and keeps whom it has not answered."""

    def init(self) -> None:
        self.owed: list[From] = []
        self.log: list[object] = []

    def handle_call(self, message: Any, from_: From) -> Any:
        if message == "later":
            self.owed.append(from_)
            return NO_REPLY
        return message(self, from_) if callable(message) else message

    def handle_cast(self, message: Any) -> Any:
        if callable(message):
            return message(self)
        self.log.append(message)
        return None

    def handle_info(self, message: Any) -> None:
        self.log.append(message)


async def up(kind: type[S], *args: Any, **options: Any) -> ServerRef[S]:
    """Start a server; unlike ``start``, with whatever arguments."""
    return await start(kind, *args, **options)


async def owed(ref: ServerRef[Puppet]) -> list[From]:
    """Whom a puppet has not answered yet."""
    found: list[From] = await call(ref, lambda it, _: it.owed)
    return found


async def ticks(many: int = 20) -> None:
    """Let all others run."""
    for _ in range(many):
        await anyio.lowlevel.checkpoint()


class Outcome:
    """A call in a task of its own."""

    value: object = "nothing"
    error: CallError | None = None
    at: float = -1.0

    def __init__(self, fn: Callable[..., Awaitable[object]], *args: Any, **options: Any) -> None:
        self._fn = fn
        self._args = args
        self._options = options

    async def __call__(self) -> None:
        try:
            self.value = await self._fn(*self._args, **self._options)
        except CallError as error:
            self.error = error
        self.at = anyio.current_time()


# The answer.


async def test_a_call_is_answered() -> None:
    async with Scope():
        ref = await up(Puppet)

        assert await call(ref, 5) == 5


async def test_many_callers_each_get_their_own_answer() -> None:
    async with Scope():
        ref = await up(Puppet)
        async with anyio.create_task_group() as tg:
            outcomes = [Outcome(call, ref, number) for number in range(100)]
            for each in outcomes:
                tg.start_soon(each)

    assert [each.value for each in outcomes] == list(range(100))


@virtual
async def test_an_answer_may_come_later_from_the_server() -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        outcome = Outcome(call, ref, "later")
        tg.start_soon(outcome)
        await ticks()
        cast(ref, lambda it: reply(it.owed[0], 5) and None)

    assert outcome.value == 5


@virtual
async def test_an_answer_may_come_from_any_task_and_process() -> None:
    async def replier(to: From, value: int) -> None:
        to.reply(value)

    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        outcomes = [Outcome(call, ref, "later") for _ in range(2)]
        for each in outcomes:
            tg.start_soon(each)
        await ticks()
        first, second = await owed(ref)
        spawn(replier, first, 1)
        tg.start_soon(replier, second, 2)

    assert sorted(str(each.value) for each in outcomes) == ["1", "2"]


@virtual
async def test_an_answer_may_come_before_handle_call_returns() -> None:
    async def early(it: Puppet, from_: From) -> Any:
        from_.reply("early")
        await anyio.sleep(5)
        return NO_REPLY

    async with Scope():
        ref = await up(Puppet)

        assert await call(ref, early) == "early"
        assert anyio.current_time() == 0


@virtual
async def test_only_the_first_answer_counts() -> None:
    def twice(it: Puppet, from_: From) -> str:
        it.log.append(from_.reply("first"))
        it.log.append(from_.reply("second"))
        it.log.append(from_.fail(ValueError()))
        return "third"

    async with Scope():
        ref = await up(Puppet)

        assert await call(ref, twice) == "first"
        assert await call(ref, lambda it, _: it.log) == [True, False, False]


@virtual
async def test_an_answer_may_be_an_error_which_does_not_end_the_server() -> None:
    def refuse(it: Puppet, from_: From) -> object:
        from_.fail(PermissionError("not you"))
        return NO_REPLY

    async with Scope():
        ref = await up(Puppet)
        with pytest.raises(PermissionError, match="not you"):
            await call(ref, refuse)

        assert await call(ref, 5) == 5


@virtual
async def test_a_server_knows_who_calls() -> None:
    seen: list[object] = []

    async def caller(ref: ServerRef[Puppet]) -> None:
        seen.append(await call(ref, lambda _, from_: from_.sender))

    async with Scope():
        ref = await up(Puppet)
        pid = spawn(caller, ref)
        await pid.wait()

        assert seen == [pid]
        assert await call(ref, lambda _, from_: from_.sender) is None
        assert "From" in await call(ref, lambda _, from_: repr(from_))


@virtual
async def test_calls_and_casts_of_one_sender_are_handled_in_order() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, 1)
        request = send_request(ref, lambda it, _: it.log.append(2))
        ref.pid.send(3)
        cast(ref, 4)

        assert await call(ref, lambda it, _: it.log) == [1, 2, 3, 4]
        assert await receive_response(request) is None


@virtual
async def test_a_plain_process_can_answer_calls_too() -> None:
    async def echo() -> None:
        request = await current_process().receive(From)
        request.reply(request.message.upper())

    async with Scope():
        assert await call(spawn(echo), "hello") == "HELLO"


# No answer in time.


@virtual
async def test_a_call_waits_five_seconds_by_default() -> None:
    async with Scope():
        ref = await up(Puppet)
        with pytest.raises(CallTimeoutError) as failure:
            await call(ref, "later")

        assert anyio.current_time() == 5
    assert isinstance(failure.value, TimeoutError)
    assert failure.value.seconds == 5
    assert failure.value.target == ref.pid
    assert failure.value.request == "later"
    assert "within 5 seconds" in str(failure.value)


@virtual
async def test_a_call_without_a_timeout_waits_for_ever() -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        outcome = Outcome(call, ref, "later", timeout=None)
        tg.start_soon(outcome)
        await anyio.sleep(80_000)
        cast(ref, lambda it: it.owed[0].reply(5) and None)

    assert outcome.value == 5


@virtual
@pytest.mark.parametrize("seconds", [0, -1])
async def test_a_call_without_time_raises_and_is_not_handled(seconds: float) -> None:
    async with Scope():
        ref = await up(Puppet)
        with pytest.raises(CallTimeoutError) as failure:
            await call(ref, lambda it, _: it.log.append("handled"), timeout=seconds)

        assert failure.value.seconds == seconds
        assert await call(ref, lambda it, _: it.log) == []


@virtual
async def test_a_timed_out_caller_does_not_harm_the_server_and_a_late_answer_goes_nowhere() -> None:
    heard: list[object] = []

    async def caller(ref: ServerRef[Puppet]) -> None:
        me = current_process()
        with pytest.raises(CallTimeoutError):
            await call(ref, "later", timeout=1)
        (request,) = await owed(ref)
        heard.append(request.reply("late"))
        heard.append(request.fail(ValueError("late")))
        await ticks()
        heard.extend(me.mailbox)
        heard.append(await call(ref, "next"))

    async with Scope():
        ref = await up(Puppet)
        await spawn(caller, ref).wait()

        assert heard == [False, False, "next"]
        assert ref.pid.alive


@virtual
async def test_a_server_that_returns_a_late_answer_goes_on() -> None:
    async def slow(it: Puppet, from_: From) -> str:
        await anyio.sleep(3)
        return "late"

    async with Scope():
        ref = await up(Puppet)
        with pytest.raises(CallTimeoutError):
            await call(ref, slow, timeout=1)

        assert await call(ref, "next") == "next"
        assert anyio.current_time() == 3


@virtual
async def test_a_request_that_the_server_has_not_begun_with_is_dropped() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: anyio.sleep(3))
        with pytest.raises(CallTimeoutError):
            await call(ref, lambda it, _: it.log.append("too late"), timeout=1)

        assert await call(ref, lambda it, _: it.log) == []


@virtual
async def test_the_request_of_a_cancelled_call_is_dropped() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: anyio.sleep(3))
        with anyio.move_on_after(1):
            await call(ref, lambda it, _: it.log.append("nobody waits"))

        assert await call(ref, lambda it, _: it.log) == []


@virtual
async def test_the_request_of_a_caller_that_was_killed_is_dropped() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: anyio.sleep(3))
        pid = spawn(call, ref, lambda it, _: it.log.append("nobody waits"))
        await anyio.sleep(1)
        pid.exit(KILL)

        assert await call(ref, lambda it, _: it.log) == []


@virtual
async def test_a_deferred_answer_to_a_cancelled_call_goes_nowhere() -> None:
    async with Scope():
        ref = await up(Puppet)
        with anyio.move_on_after(1):
            await call(ref, "later")
        (request,) = await owed(ref)

        assert not request.reply(5)


# The server ends.


async def test_a_call_to_one_that_has_ended_says_so() -> None:
    with Registry() as registry:
        async with Scope():
            ref = await up(Puppet)
            await stop(ref)

            targets: list[Server] = [ref, ref.pid, "nobody", registry.via("nobody")]
            for target in targets:
                with pytest.raises(ServerDownError) as failure:
                    await call(target, 5)
                assert failure.value.reason is NOPROC
                assert failure.value.request == 5
                assert "no such process" in str(failure.value)


@virtual
async def test_ten_callers_that_wait_all_hear_the_reason_at_once() -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        cast(ref, lambda _: anyio.sleep(1))
        outcomes = [Outcome(call, ref, "later" if n % 2 else n, timeout=100) for n in range(10)]
        outcomes += [Outcome(system.get_state, ref, timeout=100)]
        error = ValueError("broken")

        async def crash(it: Puppet) -> None:
            await anyio.sleep(1)
            raise error

        cast(ref, crash)
        for each in outcomes:
            tg.start_soon(each)

    failed = [each for each in outcomes if each.error is not None]
    assert len(failed) >= 10
    for each in failed:
        assert isinstance(each.error, ServerDownError)
        assert each.error.reason is error
        assert each.at == 2


@virtual
@pytest.mark.parametrize("reason", [NORMAL, SHUTDOWN, "boom"], ids=repr)
async def test_the_end_of_a_server_after_no_reply_ends_the_wait_at_once(reason: object) -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        outcome = Outcome(call, ref, "later", timeout=None)
        tg.start_soon(outcome)
        await anyio.sleep(1)
        cast(ref, lambda _: Stop(reason))

    assert isinstance(outcome.error, ServerDownError)
    assert outcome.error.reason == reason
    assert outcome.at == 1
    assert "ended without an answer" in str(outcome.error)


@virtual
@pytest.mark.parametrize("signal", [KILL, SHUTDOWN, "boom"], ids=repr)
async def test_an_exit_signal_to_the_server_ends_the_wait_at_once(signal: object) -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        running = Outcome(call, ref, lambda *_: anyio.sleep(100), timeout=None)
        queued = Outcome(call, ref, 5, timeout=None)
        tg.start_soon(running)
        await ticks()
        tg.start_soon(queued)
        await anyio.sleep(1)
        ref.pid.exit(signal)

    for each in [running, queued]:
        assert isinstance(each.error, ServerDownError)
        assert each.error.reason == (KILLED if signal is KILL else signal)
        assert each.at == 1


@virtual
async def test_an_answer_given_before_the_end_counts() -> None:
    def answer(it: Puppet, from_: From) -> Stop:
        from_.reply("answered")
        return Stop("boom", "not this")

    async with Scope():
        ref = await up(Puppet)

        assert await call(ref, answer) == "answered"
        assert await ref.wait() == "boom"


@virtual
async def test_requests_left_in_a_mailbox_fail_when_the_server_stops() -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        cast(ref, lambda _: anyio.sleep(1))
        cast(ref, lambda _: Stop())
        outcome = Outcome(call, ref, 5, timeout=None)
        tg.start_soon(outcome)

    assert isinstance(outcome.error, ServerDownError)
    assert outcome.error.reason is NORMAL


@virtual
async def test_a_server_keeps_nothing_of_calls_that_are_over() -> None:
    class Big:
        pass

    async with Scope():
        ref = await up(Puppet)
        kept: list[weakref.ref[Big]] = []
        for timeout in (None, 1):
            big = Big()
            kept.append(weakref.ref(big))
            if timeout is None:
                await call(ref, big)
            else:
                cast(ref, lambda _: anyio.sleep(2))
                with pytest.raises(CallTimeoutError):
                    await call(ref, big, timeout=timeout)
                await call(ref, None)
            del big
        gc.collect()

        assert [each() for each in kept] == [None, None]


# Itself.


@virtual
async def test_a_call_to_itself_is_refused_and_nothing_is_sent() -> None:
    async def mistake(it: Puppet, from_: From) -> int:
        with pytest.raises(CallingSelfError) as failure:
            await call(it.process.pid, 5)
        assert "calls itself" in str(failure.value)
        with pytest.raises(CallingSelfError):
            send_request(it.process.pid, 5)
        return len(it.process.mailbox)

    async with Scope():
        ref = await up(Puppet)

        assert await call(ref, mistake) == 0


class Cache(Puppet):
    """Fetches in the background, and calls itself with what it has."""

    group: TaskGroup

    def fetch(self) -> None:
        self.fetched: list[object] = []

        async def fetch() -> None:
            await anyio.sleep(1)
            self.fetched.append(await call(self.process.pid, "fetched"))

        self.group.start_soon(fetch)


@virtual
@pytest.mark.parametrize("how", ["in a cast", "in a call"])
async def test_a_task_that_an_idle_server_has_started_may_call_it(how: str) -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Cache)
        Cache.group = tg
        if how == "in a cast":
            cast(ref, Cache.fetch)
        else:
            await call(ref, lambda it, _: it.fetch())
        await anyio.sleep(2)

        assert await call(ref, lambda it, _: it.fetched) == ["fetched"]


@virtual
async def test_a_task_for_a_call_that_is_not_answered_yet_may_not_call_its_server() -> None:
    async def inside(it: Puppet, from_: From) -> object:
        async def ask() -> None:
            with pytest.raises(CallingSelfError):
                await call(it.process.pid, 5)
            with pytest.raises(CallingSelfError):
                await stop(it.process.pid)

        async with anyio.create_task_group() as tg:
            tg.start_soon(ask)
        return "lives"

    async with Scope():
        assert await call(await up(Puppet), inside) == "lives"


@virtual
async def test_a_process_that_handles_no_call_may_not_call_itself_either() -> None:
    seen: list[type[Exception]] = []

    async def mistake(*_: object) -> None:
        me = current_process().pid
        for attempt in (lambda: call(me, 5), lambda: stop(me), lambda: system.get_state(me)):
            try:
                await attempt()
            except CallingSelfError as error:
                seen.append(type(error))

    async with Scope() as scope:
        ref = await up(Puppet)
        cast(ref, mistake)
        await call(ref, 5)
        await scope.spawn(mistake).wait()

    assert seen == [CallingSelfError] * 6


@virtual
async def test_a_callback_of_the_loop_may_ask_a_server_in_whose_name_it_runs() -> None:
    got: list[From] = []

    def later(it: Puppet) -> None:
        set_alarm(anyio.current_time() + 1, lambda: got.append(send_request(it.process.pid, 5)))

    async with Scope():
        ref = await up(Puppet)
        cast(ref, later)
        await anyio.sleep(2)

        assert await receive_response(got[0]) == 5


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks")
@pytest.mark.parametrize("anyio_backend", ["eager asyncio"], indirect=True)
async def test_a_task_that_begins_at_once_is_not_the_servers_own() -> None:
    answers: list[object] = []

    async def background(pid: Pid) -> None:
        answers.append(await call(pid, "hi"))

    def start_it(it: Puppet) -> None:
        it.task = asyncio.create_task(background(it.process.pid))  # type: ignore[attr-defined]

    async with Scope():
        ref = await up(Puppet)
        cast(ref, start_it)
        while not answers:
            await anyio.lowlevel.checkpoint()

    assert answers == ["hi"]


@virtual
async def test_a_call_finds_its_server_when_it_is_awaited() -> None:
    class Named(Puppet):
        pass

    with Registry[Any, Any]():
        async with Scope():
            nobody = call("it", 1)
            early: ServerRef[Named] = await start(Named, name="it")
            asked = call("it", "hi")
            await stop(early)
            await start(Named, name="it")

            assert await asked == "hi"
            assert await nobody == 1
            lost = call("nobody", 1)
            with pytest.raises(ServerDownError) as failure:
                await lost
            assert failure.value.reason is NOPROC


@virtual
async def test_two_servers_that_call_each_other_time_out_and_live() -> None:
    async with Scope():
        one, other = await up(Puppet), await up(Puppet)

        async def back(it: Puppet, from_: From) -> object:
            return await call(one, 5, timeout=1)

        async def there(it: Puppet, from_: From) -> object:
            with pytest.raises(ServerDownError):
                await call(other, back, timeout=3)
            return "survived"

        assert await call(one, there) == "survived"
        assert anyio.current_time() == 1
        assert isinstance(other.pid.reason, CallTimeoutError)


# Deadlines that travel.


@virtual
async def test_what_is_left_of_a_callers_time_travels_through_two_servers() -> None:
    seen: list[tuple[str, float]] = []

    async with Scope():
        last, middle, first = await up(Puppet), await up(Puppet), await up(Puppet)

        async def in_middle(it: Puppet, from_: From) -> object:
            await anyio.sleep(1)
            try:
                await call(last, "later", timeout=100)
            except CallTimeoutError:
                seen.append(("middle", anyio.current_time()))
            return NO_REPLY

        async def in_first(it: Puppet, from_: From) -> object:
            await anyio.sleep(1)
            try:
                await call(middle, in_middle, timeout=None)
            except CallTimeoutError:
                seen.append(("first", anyio.current_time()))
            return NO_REPLY

        with pytest.raises(CallTimeoutError):
            await call(first, in_first, timeout=5)
        await ticks()

    assert sorted(seen) == [("first", 5), ("middle", 5)]


@virtual
async def test_an_error_tells_how_long_a_call_with_a_deadline_from_above_waited() -> None:
    async with Scope():
        last, first = await up(Puppet), await up(Puppet)
        seen: list[float] = []

        async def ask(it: Puppet, from_: From) -> object:
            await anyio.sleep(3)
            with pytest.raises(CallTimeoutError) as failure:
                await call(last, "later", timeout=100)
            seen.append(failure.value.seconds)
            return NO_REPLY

        with pytest.raises(CallTimeoutError):
            await call(first, ask, timeout=5)
        await ticks()

    assert seen == [2]


@virtual
async def test_a_shorter_time_of_its_own_is_shorter() -> None:
    async with Scope():
        last, first = await up(Puppet), await up(Puppet)

        async def ask(it: Puppet, from_: From) -> float:
            with pytest.raises(CallTimeoutError):
                await call(last, "later", timeout=1)
            return anyio.current_time()

        assert await call(first, ask, timeout=5) == 1


@virtual
async def test_a_deadline_is_over_with_the_call() -> None:
    async with Scope():
        last, first = await up(Puppet), await up(Puppet)
        await call(first, 5, timeout=1)

        async def ask(it: Puppet) -> None:
            it.log.append(await call(last, "x", timeout=10))

        await anyio.sleep(5)
        cast(first, ask)

        assert await call(first, lambda it, _: it.log) == ["x"]


@virtual
@pytest.mark.parametrize("how", ["task", "scope", "child", "start", "continue"])
async def test_what_a_handler_starts_for_later_is_not_bound_by_its_callers_deadline(
    how: str,
) -> None:
    done: list[object] = []

    async def work(ref: ServerRef[Puppet]) -> None:
        await anyio.sleep(50)
        done.append(await call(ref, "worked", timeout=10))

    class Starter(GenServer):
        async def init(self, group: Any, supervisor: Any, other: ServerRef[Puppet]) -> None:
            self.group, self.supervisor, self.other = group, supervisor, other

        async def handle_call(self, message: Any, from_: From) -> Any:
            match message:
                case "task":
                    self.group.start_soon(work, self.other)
                case "scope":
                    spawn(work, self.other)
                case "child":

                    async def child() -> None:
                        await work(self.other)
                        await anyio.sleep_forever()

                    await self.supervisor.start_child(child)
                case "start":
                    worker = await up(Puppet)
                    cast(worker, lambda _: work(self.other))
                case "continue":
                    return NoReply(then=from_.reply("started"))
                case _:
                    pytest.fail("how?")
            return "started"

        async def handle_continue(self, argument: Any) -> None:
            await work(self.other)

    async with Scope(), anyio.create_task_group() as tg, DynamicSupervisor() as supervisor:
        other = await up(Puppet)
        ref = await up(Starter, tg, supervisor, other)
        assert await call(ref, how) == "started"
        await anyio.sleep(100)

        assert done == ["worked"]


@virtual
async def test_a_background_task_of_a_server_is_not_bound_by_whoever_calls_it() -> None:
    done: list[object] = []

    async def background(other: ServerRef[Puppet]) -> None:
        await anyio.sleep(1)
        done.append(await call(other, lambda *_: anyio.sleep(20), timeout=30))

    class Host(GenServer):
        def init(self, group: Any, other: ServerRef[Puppet]) -> None:
            group.start_soon(background, other)

        async def handle_call(self, message: Any, from_: From) -> Any:
            await anyio.sleep(3)
            return message

    async with Scope(), anyio.create_task_group() as tg:
        other = await up(Puppet)
        ref = await up(Host, tg, other)
        assert await call(ref, 5, timeout=4) == 5
        await anyio.sleep(30)

        assert done == [None]


@virtual
async def test_a_call_that_comes_before_the_server_begins_hears_that_it_did_not_start() -> None:
    error = ValueError("no")

    class Failing(Puppet):
        def init(self) -> None:
            raise error

    async with Scope():
        startup = start_soon(Failing)
        with pytest.raises(ServerDownError) as failure:
            await call(startup.ref, 5, timeout=100)
        with pytest.raises(InitError):
            await startup.wait()

        assert failure.value.reason is error
        assert anyio.current_time() == 0


@virtual
async def test_a_call_that_comes_during_init_is_handled_after_it() -> None:
    class Slow(Puppet):
        async def init(self) -> None:  # type: ignore[override]
            await anyio.sleep(3)
            super().init()

    async with Scope() as scope, anyio.create_task_group() as tg:
        tg.start_soon(start, Slow)
        await anyio.sleep(1)

        assert await call(scope.processes[0], 5) == 5
        assert anyio.current_time() == 3


@virtual
async def test_a_call_during_an_init_that_fails_hears_why() -> None:
    class Slow(Puppet):
        async def init(self) -> None:  # type: ignore[override]
            await anyio.sleep(3)
            raise ValueError("no")

    async with Scope() as scope, anyio.create_task_group() as tg:

        async def starter() -> None:
            with pytest.raises(InitError):
                await start(Slow)

        tg.start_soon(starter)
        await anyio.sleep(1)
        with pytest.raises(ServerDownError) as failure:
            await call(scope.processes[0], 5, timeout=None)

    assert isinstance(failure.value.reason, ValueError)


@virtual
async def test_a_server_can_see_that_its_caller_has_given_up() -> None:
    seen: list[bool] = []

    async def work(it: Puppet, from_: From) -> None:
        while not from_.over:
            seen.append(from_.over)
            await anyio.sleep(1)

    async with Scope():
        ref = await up(Puppet)
        with pytest.raises(CallTimeoutError):
            await call(ref, work, timeout=2.5)

        assert await call(ref, 5) == 5
        assert anyio.current_time() == 3
    assert seen == [False] * 3


@virtual
@pytest.mark.parametrize("seconds", [math.inf, 1e9])
async def test_a_call_may_wait_for_a_very_long_time(seconds: float) -> None:
    async with Scope():
        ref = await up(Puppet)
        for _ in range(4):
            cast(ref, lambda _: anyio.sleep(2))

        assert await call(ref, 5, timeout=seconds) == 5
        cast(ref, lambda _: anyio.sleep(2))
        assert await system.get_state(ref, timeout=seconds)
        cast(ref, lambda _: anyio.sleep(2))
        assert await wait_response(send_request(ref, 5), seconds) == 5
        cast(ref, lambda _: anyio.sleep(2))
        assert await multi_call([ref], 5, timeout=seconds) == ([(ref, 5)], [])


@virtual
async def test_many_calls_with_different_times_each_end_at_theirs() -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        times = [7, 3, 9, 1, 5, 3]
        outcomes = [Outcome(call, ref, "later", timeout=each) for each in times]
        forever = Outcome(call, ref, "later", timeout=None)
        for each in [forever, *outcomes]:
            tg.start_soon(each)
        await anyio.sleep(20)
        cast(ref, lambda _: Stop())

    assert [each.at for each in outcomes] == times
    assert {type(each.error) for each in outcomes} == {CallTimeoutError}
    assert isinstance(forever.error, ServerDownError)


@virtual
async def test_a_caller_without_a_limit_sets_none_for_what_is_asked_on_its_behalf() -> None:
    async with Scope():
        first, last = await up(Puppet), await up(Puppet)

        async def ask(it: Puppet, from_: From) -> object:
            cast(last, lambda _: anyio.sleep(50))
            return await call(last, "answer", timeout=100)

        assert await call(first, ask, timeout=None) == "answer"


@real
async def test_a_request_that_is_overdue_when_the_server_takes_it_is_dropped() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: time.sleep(0.1))
        with pytest.raises(CallTimeoutError):
            await call(ref, lambda it, _: it.log.append("late"), timeout=0.05)

        assert await call(ref, lambda it, _: it.log) == []


@virtual
async def test_a_query_and_a_request_follow_the_rules_of_calls() -> None:
    async with Scope() as scope:
        ref, full = await up(Puppet), await up(Puppet, capacity=1)
        with pytest.raises(CallTimeoutError):
            await system.get_state(ref, timeout=0)
        cast(full, lambda _: anyio.sleep(5))
        await ticks()
        cast(full, "fills it")
        with pytest.raises(MailboxFullError):
            send_request(full, 5)
        plain = scope.spawn(ticks)
        await plain.wait()
        for never_called in (plain, plain):
            with pytest.raises(ServerDownError):
                send_request(never_called, 5)


@virtual
async def test_a_plain_process_that_ends_without_an_answer_is_a_server_that_is_down() -> None:
    async def mute() -> None:
        await anyio.sleep(2)

    async with Scope() as scope:
        first, second = scope.spawn(mute), scope.spawn(anyio.sleep_forever)
        with pytest.raises(ServerDownError) as failure:
            await call(first, 5)
        with pytest.raises(CallTimeoutError):
            await call(second, 5, timeout=3)

        assert failure.value.reason is NORMAL
        assert anyio.current_time() == 5


@virtual
async def test_a_server_knows_how_much_time_its_caller_has_left() -> None:
    async def tell(it: Puppet, from_: From) -> object:
        assert it.current_from() is from_
        before = it.time_left()
        await anyio.sleep(1)
        return before, it.time_left()

    async with Scope():
        ref = await up(Puppet)

        assert await call(ref, tell, timeout=5) == (5, 4)
        assert await call(ref, tell, timeout=None) == (None, None)
        cast(ref, lambda it: it.log.append((it.current_from(), it.time_left())))
        assert await call(ref, lambda it, _: it.log) == [(None, None)]


# Requests that do not wait.


@virtual
async def test_a_request_is_answered_while_its_sender_does_something_else() -> None:
    async with Scope():
        ref = await up(Puppet)
        request = send_request(ref, 5)
        await anyio.sleep(1)

        assert await receive_response(request) == 5


@virtual
async def test_receive_response_waits() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: anyio.sleep(3))

        assert await receive_response(send_request(ref, 5), 10) == 5
        assert anyio.current_time() == 3


@virtual
async def test_receive_response_gives_up_for_good_at_its_timeout() -> None:
    async with Scope():
        ref = await up(Puppet)
        request = send_request(ref, "later")
        with pytest.raises(CallTimeoutError) as failure:
            await receive_response(request, 1)

        assert failure.value.seconds == 1
        assert not (await owed(ref))[0].reply("late")


@virtual
@pytest.mark.parametrize("again", [receive_response, wait_response])
async def test_a_request_that_was_given_up_never_has_an_answer(again: Any) -> None:
    async with Scope():
        ref = await up(Puppet)
        request = send_request(ref, "later")
        with pytest.raises(CallTimeoutError):
            await receive_response(request, 1)

        with pytest.raises((CallError, LookupError, RuntimeError)):
            await again(request, 1)


@virtual
async def test_wait_response_can_be_tried_again() -> None:
    async with Scope():
        ref = await up(Puppet)
        request = send_request(ref, "later")
        for seconds in (0, 1):
            with pytest.raises(CallTimeoutError):
                await wait_response(request, seconds)
        (asked,) = await owed(ref)

        assert asked.reply("at last")
        assert await wait_response(request, 0) == "at last"
        assert await receive_response(request) == "at last"


@virtual
async def test_a_request_to_one_that_ends_fails_with_the_reason() -> None:
    async with Scope():
        ref = await up(Puppet)
        request, other = send_request(ref, "later"), send_request(ref, "later")
        cast(ref, lambda _: Stop("boom"))
        for receive in (wait_response, receive_response):
            with pytest.raises(ServerDownError) as failure:
                await receive(request)
            assert failure.value.reason == "boom"
        with pytest.raises(ServerDownError):
            await receive_response(other)


async def test_a_request_to_nobody_fails() -> None:
    with Registry():
        async with Scope():
            ref = await up(Puppet)
            await stop(ref)

            for target in (ref, "nobody"):
                with pytest.raises(ServerDownError) as failure:
                    await receive_response(send_request(target, 5))
                assert failure.value.reason is NOPROC


@virtual
async def test_requests_and_queries_to_a_drained_server() -> None:
    async with Scope():
        ref = await up(Puppet)
        cast(ref, lambda _: anyio.sleep(1))
        ref.drain()
        request = send_request(ref, 5)
        with pytest.raises(ServerDownError) as failure:
            await wait_response(request)

        assert failure.value.reason is NOPROC
        assert await system.get_state(ref)


@virtual
async def test_requests_are_received_in_the_order_in_which_they_are_answered() -> None:
    async with Scope():
        slow, quick = await up(Puppet), await up(Puppet)
        requests = Requests()
        cast(slow, lambda _: anyio.sleep(3))
        requests.add(send_request(slow, 1), "slow")
        requests.add(send_request(quick, 2), "quick")

        assert len(requests) == 2
        assert await requests.receive() == (2, "quick")
        assert await requests.receive() == (1, "slow")
        assert anyio.current_time() == 3
        assert len(requests) == 0


@virtual
async def test_requests_answered_before_anybody_waits_keep_the_order_of_their_answers() -> None:
    async with Scope():
        slow, quick = await up(Puppet), await up(Puppet)
        requests = Requests()
        cast(slow, lambda _: anyio.sleep(3))
        requests.add(send_request(slow, 1), "slow")
        requests.add(send_request(quick, 2), "quick")
        await anyio.sleep(10)

        assert [await requests.receive(), await requests.receive()] == [(2, "quick"), (1, "slow")]


async def test_no_requests_are_no_requests() -> None:
    with pytest.raises(LookupError):
        await Requests().receive()


@virtual
async def test_requests_that_are_not_answered_in_time_stay() -> None:
    async with Scope():
        ref = await up(Puppet)
        requests = Requests()
        requests.add(send_request(ref, "later"), "label")
        with pytest.raises(TimeoutError):
            await requests.receive(timeout=2)
        assert anyio.current_time() == 2
        assert len(requests) == 1
        (asked,) = await owed(ref)
        asked.reply(5)

        assert await requests.receive(timeout=0) == (5, "label")


@virtual
async def test_a_request_that_fails_names_its_label() -> None:
    async with Scope():
        good, bad = await up(Puppet), await up(Puppet)
        requests = Requests()
        requests.add(send_request(bad, lambda *_: Stop("boom")), "bad")
        with pytest.raises(ServerDownError) as failure:
            await requests.receive()
        requests.add(send_request(good, 5))

        assert failure.value.reason == "boom"
        assert getattr(failure.value, "label", None) == "bad"
        assert await requests.receive() == (5, None)


@virtual
async def test_requests_can_be_added_between_answers() -> None:
    async with Scope():
        ref = await up(Puppet)
        requests = Requests()
        for number in range(3):
            requests.add(send_request(ref, number), number)
        seen = [await requests.receive()]
        requests.add(send_request(ref, 3), 3)
        while len(requests):
            seen.append(await requests.receive(timeout=5))

    assert seen == [(number, number) for number in range(4)]


@virtual
async def test_two_tasks_that_wait_for_one_request_both_hear_of_it() -> None:
    heard: list[str] = []

    async def wait(request: From) -> None:
        try:
            heard.append(await wait_response(request, 1000))
        except anyio.BusyResourceError:
            heard.append("refused")

    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        request = send_request(ref, "later")
        tg.start_soon(wait, request)
        tg.start_soon(wait, request)
        await anyio.sleep(1)
        cast(ref, lambda it: it.owed[0].reply("answer") and None)
        await anyio.sleep(1)
        tg.cancel_scope.cancel()

    assert sorted(heard) in (["answer", "answer"], ["answer", "refused"])


@virtual
async def test_two_tasks_that_receive_from_the_same_requests_each_get_one() -> None:
    heard: list[object] = []

    async def receive(requests: Requests) -> None:
        try:
            heard.append((await requests.receive())[0])
        except anyio.BusyResourceError:
            heard.append("refused")

    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        requests = Requests()
        for _ in range(2):
            requests.add(send_request(ref, "later"))
            tg.start_soon(receive, requests)
        await anyio.sleep(1)
        for request in await owed(ref):
            request.reply("answer")
        await anyio.sleep(1)
        tg.cancel_scope.cancel()

    assert sorted(map(str, heard)) in (["answer", "answer"], ["answer", "refused"])


@virtual
async def test_a_task_that_receives_when_another_takes_the_last_answer_is_told() -> None:
    heard: list[object] = []

    async def receive(requests: Requests) -> None:
        try:
            heard.append((await requests.receive(50))[0])
        except LookupError:
            heard.append("none left")

    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        requests = Requests()
        requests.add(send_request(ref, "later"))
        for _ in range(2):
            tg.start_soon(receive, requests)
        await anyio.sleep(1)
        (request,) = await owed(ref)
        request.reply("answer")

    assert heard == ["answer", "none left"]
    assert anyio.current_time() == 1


@virtual
async def test_receiving_many_requests_takes_time_in_proportion() -> None:
    async with Scope():
        ref = await up(Puppet)

        async def seconds_each(many: int) -> float:
            requests = Requests()
            for number in range(many):
                requests.add(send_request(ref, number), number)
            begun = time.thread_time()  # whatever else the machine does meanwhile
            for number in range(many):
                assert await requests.receive() == (number, number)
            return (time.thread_time() - begun) / many

        few = min([await seconds_each(150) for _ in range(3)])
        many = min([await seconds_each(1500) for _ in range(2)])

    assert many < few * 4


@virtual
async def test_several_tasks_share_what_is_received() -> None:
    async with Scope():
        ref = await up(Puppet)
        requests = Requests()
        for number in range(10):
            requests.add(send_request(ref, "later"), number)
        got: list[tuple[object, object]] = []
        empty = 0

        async def receive() -> None:
            nonlocal empty
            try:
                while True:
                    got.append(await requests.receive(5))
            except LookupError:
                empty += 1

        async with anyio.create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(receive)
            for asked in await owed(ref):
                assert asked.reply("done")
                await ticks(2)

        assert sorted(got) == [("done", number) for number in range(10)]
        assert empty == 3


@virtual
async def test_waiting_for_a_request_again_and_again_piles_nothing_up() -> None:
    async with Scope():
        ref = await up(Puppet)
        request = send_request(ref, "later")
        for _ in range(10):
            with pytest.raises(CallTimeoutError):
                await wait_response(request, 0)
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(1000):
            with pytest.raises(CallTimeoutError):
                await wait_response(request, 0)
        gc.collect()

        assert len(gc.get_objects()) < before + 500


# Several at once.


@virtual
async def test_a_multi_call_tells_who_answered_and_who_did_not() -> None:
    with Registry():
        async with Scope():
            one, two, dead, slow = [await up(Puppet) for _ in range(4)]
            await stop(dead)
            cast(slow, lambda _: anyio.sleep(10))
            full = await up(Puppet, capacity=1)
            await system.suspend(full)
            cast(full, "fills it")

            answers, bad = await multi_call(
                [one, dead, slow, "nobody", full, two.pid], 5, timeout=2
            )

            assert answers == [(one, 5), (two.pid, 5)]
            assert bad == [dead, slow, "nobody", full]
            assert anyio.current_time() == 2


@virtual
async def test_a_multi_call_waits_for_all_at_the_same_time() -> None:
    async with Scope():
        servers = [await up(Puppet) for _ in range(5)]

        def slow(it: Puppet, from_: From) -> Any:
            return anyio.sleep(3)

        answers, bad = await multi_call(list(servers), slow, timeout=None)

        assert answers == [(server, None) for server in servers]
        assert bad == []
        assert anyio.current_time() == 3


@virtual
async def test_a_multi_call_takes_no_longer_than_the_call_that_it_is_made_for() -> None:
    async with Scope():
        slow, asking = await up(Puppet), await up(Puppet)

        async def ask_all(it: Puppet, from_: From) -> None:
            it.log.append(await multi_call([slow], "later", timeout=50))
            it.log.append(anyio.current_time())

        with suppress(CallTimeoutError):  # both end in the same moment
            await call(asking, ask_all, timeout=3)
        assert await call(asking, lambda it, _: it.log) == [([], [slow]), 3]


@virtual
async def test_late_answers_to_a_multi_call_go_nowhere() -> None:
    async with Scope():
        ref = await up(Puppet)
        assert await multi_call([ref], "later", timeout=1) == ([], [ref])
        (asked,) = await owed(ref)

        assert not asked.reply(5)


@virtual
async def test_a_multi_call_to_one_that_crashes_counts_it_as_bad() -> None:
    async with Scope():
        good, crashing = await up(Puppet), await up(Puppet)

        def react(it: Puppet, from_: From) -> Any:
            return Stop("boom") if it.process.pid == crashing.pid else "fine"

        assert await multi_call([crashing, good], react) == ([(good, "fine")], [crashing])


@virtual
async def test_a_multi_call_to_nobody_is_empty() -> None:
    assert await multi_call([], 5) == ([], [])


# Errors.


@pytest.mark.parametrize(
    "error",
    [
        ServerDownError("target", "request", "boom"),
        ServerDownError("target", "request", NOPROC),
        CallTimeoutError("target", "request", 5.0),
        CallingSelfError("target", "request"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_copied_and_pickled(error: CallError) -> None:
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert (twin.target, twin.request) == ("target", "request")
    assert isinstance(error, ProcessError)


@pytest.mark.parametrize("kind", [ServerDownError, CallTimeoutError, CallingSelfError, CallError])
def test_tracebacks_show_errors_under_their_public_names(kind: type[CallError]) -> None:
    assert kind.__module__ == "backplane.otp"


async def test_what_is_no_server_is_refused() -> None:
    with pytest.raises(TypeError):
        await call(5, "hello")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        cast(5, "hello")  # type: ignore[arg-type]


# Threads.


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Have threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


async def in_threads(many: int, fn: Callable[..., Awaitable[object]], *args: object) -> None:
    """Run an async function in several threads, each with a loop of its own."""

    def run(number: int) -> None:
        anyio.run(fn, number, *args, backend="trio" if number % 2 else "asyncio")

    async with anyio.create_task_group() as tg:
        for number in range(many):
            tg.start_soon(anyio.to_thread.run_sync, run, number)


@real
async def test_foreign_threads_with_own_loops_call_and_are_answered() -> None:
    seen: list[tuple[int, object]] = []

    async def caller(number: int, ref: ServerRef[Puppet]) -> None:
        seen.extend([(number, await call(ref, step)) for step in range(50)])

    async with Scope():
        ref = await up(Puppet)
        await in_threads(4, caller, ref)

    assert sorted(seen, key=lambda each: each[0]) == [
        (number, step) for number in range(4) for step in range(50)
    ]


@real
async def test_a_foreign_thread_hears_of_timeouts_and_of_the_end() -> None:
    seen: list[CallError] = []

    async def caller(_: int, ref: ServerRef[Puppet]) -> None:
        with pytest.raises(CallTimeoutError) as late:
            await call(ref, "later", timeout=0.05)
        seen.append(late.value)
        with pytest.raises(ServerDownError) as down:
            await call(ref, lambda *_: Stop("boom"))
        seen.append(down.value)
        with pytest.raises(ServerDownError) as gone:
            await call(ref, 5)
        seen.append(gone.value)

    async with Scope():
        ref = await up(Puppet)
        await in_threads(1, caller, ref)

        assert await ref.wait() == "boom"
    assert [getattr(each, "reason", "late") for each in seen] == ["late", "boom", NOPROC]


@real
async def test_a_foreign_thread_may_answer() -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Puppet)
        outcome = Outcome(call, ref, "later", timeout=30)
        tg.start_soon(outcome)
        while not (requests := await owed(ref)):
            await anyio.lowlevel.checkpoint()

        assert await anyio.to_thread.run_sync(requests[0].reply, 5)

    assert outcome.value == 5


@real
async def test_the_time_of_a_foreign_caller_binds_what_the_server_asks_others() -> None:
    seen: list[float] = []

    async def caller(_: int, ref: ServerRef[Puppet], ask: object, seconds: float) -> None:
        with pytest.raises(CallTimeoutError):
            await call(ref, ask, timeout=seconds)

    async with Scope():
        first, last = await up(Puppet), await up(Puppet)

        async def ask(it: Puppet, from_: From) -> object:
            with pytest.raises(CallTimeoutError) as failure:
                await call(last, "later", timeout=60)
            seen.append(failure.value.seconds)
            return NO_REPLY

        for seconds in 0.1, 1.0, 10.0:  # the next if a standstill has let the time pass by
            with anyio.fail_after(50):
                await in_threads(1, caller, first, ask, seconds)
                await call(first, None, timeout=None)
            if seen:
                break

    assert seen[0] <= seconds


@real
async def test_a_foreign_callers_wait_in_the_mailbox_counts_for_its_deadline() -> None:
    left: list[Any] = []

    async def caller(_: int, ref: ServerRef[Puppet]) -> None:
        left.append(await call(ref, lambda it, _: it.time_left(), timeout=60))

    async with Scope():
        ref = await up(Puppet)

        async def keep_waiting(it: Puppet) -> None:
            while not it.process.mailbox:
                await anyio.sleep(0.001)
            await anyio.sleep(0.2)

        cast(ref, keep_waiting)
        with anyio.fail_after(50):
            await in_threads(1, caller, ref)

    assert 0 < left[0] < 60 - 0.1


@real
async def test_callers_in_threads_all_hear_of_a_crash(quick_switches: None) -> None:
    over: list[object] = []

    async def caller(_: int, refs: list[ServerRef[Puppet]], ready: threading.Barrier) -> None:
        for ref in refs:
            await anyio.to_thread.run_sync(ready.wait)
            try:
                await call(ref, "later", timeout=20)
            except CallError as error:
                over.append(error)

    many, threads = 30, 4
    async with Scope() as scope:
        refs = [await up(Puppet) for _ in range(many)]
        ready = threading.Barrier(threads + 1)

        async def crash() -> None:
            for ref in refs:
                await anyio.to_thread.run_sync(ready.wait)
                ref.pid.exit(KILL)

        async with anyio.create_task_group() as tg:
            tg.start_soon(crash)
            await in_threads(threads, caller, refs, ready)
        assert scope.processes == []

    assert len(over) == many * threads
    assert {type(each) for each in over} == {ServerDownError}


def answer_from_thread(
    ready: threading.Barrier, asked: From, counted: list[int], number: int
) -> None:
    """Answer at the same time as others do."""
    ready.wait()
    if asked.reply(number):
        counted.append(number)


@real
async def test_of_many_answers_from_threads_exactly_one_counts(quick_switches: None) -> None:
    async with Scope():
        ref = await up(Puppet)
        for _ in range(20):
            request = send_request(ref, "later")
            while not await owed(ref):
                await anyio.lowlevel.checkpoint()
            (asked,) = await owed(ref)
            await call(ref, lambda it, _: it.owed.clear())
            counted: list[int] = []
            ready = threading.Barrier(4)

            answer = functools.partial(answer_from_thread, ready, asked, counted)

            async with anyio.create_task_group() as tg:
                for number in range(4):
                    tg.start_soon(anyio.to_thread.run_sync, answer, number)

            assert [await receive_response(request, 5)] == counted


@real
async def test_a_bounded_mailbox_may_be_filled_by_threads() -> None:
    answers: list[object] = []

    async def caller(number: int, ref: ServerRef[Puppet]) -> None:
        for step in range(50):
            try:
                answers.append(await call(ref, step, timeout=20))
            except ProcessError:
                answers.append(None)

    async with Scope():
        ref = await up(Puppet, capacity=2, overflow=Overflow.RAISE)
        await in_threads(4, caller, ref)

        assert await call(ref, "still there") == "still there"
    assert len(answers) == 200


@real
async def test_a_supervised_server_is_called_from_a_thread() -> None:
    seen: list[object] = []

    async def caller(_: int, ref: ServerRef[Puppet]) -> None:
        seen.append(await call(ref, 5))
        cast(ref, "cast")
        seen.append(await call(ref, lambda it, _: list(it.log)))
        await stop(ref)

    async with DynamicSupervisor() as supervisor:
        info = await supervisor.start_child(child_spec(Puppet, restart=Restart.TEMPORARY))
        await in_threads(1, caller, info.value)

    assert seen == [5, ["cast"]]
