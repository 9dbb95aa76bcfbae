"""What goes wrong in a server, and what all others see of it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from backplane.otp import (
    KILL,
    KILLED,
    NO_REPLY,
    NORMAL,
    Alias,
    BadReturnError,
    Down,
    Exit,
    Exited,
    From,
    GenServer,
    Groups,
    Ignore,
    InitError,
    NoReply,
    Pid,
    Registry,
    Scope,
    ServerDownError,
    ServerRef,
    Stop,
    Stopped,
    Timer,
    alias,
    call,
    cast,
    current_process,
    on_call,
    registered,
    send_after,
    send_request,
    spawn,
    spawn_link,
    start,
    start_soon,
    stop,
    whereis,
)

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


async def forever(*_: object) -> None:
    await anyio.sleep(math.inf)


class Stuck(GenServer):
    """Hangs in the one callback that it is told, and notes which it came to."""

    def init(self, hook: str, came: list[str]) -> Any:
        self._hook = hook
        self._came = came
        return self._at("init", NoReply(timeout=0) if hook == "timeout" else None)

    async def _at(self, hook: str, result: Any = None) -> Any:
        self._came.append(hook)
        if hook == self._hook:
            await forever()
        return result

    @on_call
    async def ask(self) -> Any:
        return await self._at("method")

    def handle_call(self, message: Any, from_: From) -> Any:
        return self._at("call")

    def handle_cast(self, message: Any) -> Any:
        return self._at("cast", {"continue": NoReply(then=1), "terminate": Stop()}.get(message))

    def handle_info(self, message: Any) -> Any:
        return self._at("info")

    def handle_continue(self, argument: Any) -> Any:
        return self._at("continue")

    def handle_timeout(self) -> Any:
        return self._at("timeout")

    def terminate(self, reason: Any) -> Any:
        return self._at("terminate")


def reach(hook: str, ref: ServerRef[Stuck]) -> None:
    """Have a server come to a callback."""
    match hook:
        case "call":
            send_request(ref, "ask")
        case "method":
            spawn(ref.call, Stuck.ask)
        case "info":
            ref.send("info")
        case _:
            cast(ref, hook)


HOOKS = ["init", "call", "method", "cast", "info", "continue", "timeout", "terminate"]


@virtual
@pytest.mark.parametrize("signal", [KILL, "boom"], ids=repr)
@pytest.mark.parametrize("hook", HOOKS)
async def test_a_signal_ends_a_server_in_whatever_callback_it_hangs(
    hook: str, signal: object
) -> None:
    came: list[str] = []

    with Registry():
        async with Scope():
            startup = start_soon(Stuck, hook, came, name="it")
            if hook != "init":
                await startup.wait()
            reach(hook, startup.ref)
            await anyio.sleep(1)
            waiting = send_request(startup.ref, "never handled")
            assert came[-1] == hook
            startup.ref.pid.exit(signal)
            reason = await startup.ref.wait()

            assert reason == (KILLED if signal is KILL else signal)
            assert came[-1] == hook
            assert anyio.current_time() == 1
            assert whereis("it") is None
            assert waiting.over
            assert isinstance(waiting.error, ServerDownError)
            assert waiting.error.reason == reason


@virtual
@pytest.mark.parametrize("signal", [KILL, "boom"], ids=repr)
async def test_a_signal_during_init_fails_the_start_for_its_reason(signal: object) -> None:
    async with Scope():
        startup = start_soon(Stuck, "init", [])
        await anyio.sleep(1)
        startup.ref.pid.exit(signal)
        with pytest.raises(InitError) as failure:
            await startup.wait()

    assert failure.value.reason == (KILLED if signal is KILL else signal)


# A start that fails leaves nothing.


class Grabbing(GenServer):
    """Takes hold of all that there is, and then does what it is told."""

    def init(self, registry: Registry, groups: Groups, held: list[Any], then: Any) -> Any:
        me = self.process
        registry.register("second key")
        registry.subscribe()
        for _ in range(2):
            groups.join("group")
        groups.monitor("group")
        timer = send_after(1000, me.pid, "ring")
        held.extend([me.pid, timer, alias(), spawn_link(forever), spawn(forever)])
        me.monitor(held[-1])
        return then(me.pid)


def raising(error: Exception) -> Callable[[Pid], Any]:
    """Make a function that raises."""

    def fn(_: Pid) -> Any:
        raise error

    return fn


def exiting(reason: object) -> Callable[[Pid], Any]:
    """Make a function that sends its process an exit signal, and waits."""

    def fn(pid: Pid) -> Any:
        pid.exit(reason)
        return forever()

    return fn


FAILURES: dict[str, Callable[[Pid], Any]] = {
    "raises": raising(ValueError()),
    "exits": raising(Exit("boom")),
    "exits well": raising(Exit()),
    "ignores": raising(Ignore()),
    "stops": lambda _: Stop("boom"),
    "returns nonsense": lambda _: 5,
    "takes too long": forever,
    "is cancelled": forever,
    "kills itself": exiting(KILL),
    "ends itself": exiting("boom"),
}


@virtual
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_start_that_fails_leaves_nothing(failure: str) -> None:
    registry, groups, held = Registry(), Groups(), list[Any]()
    seen: list[Any] = []

    async def starter() -> None:
        patience = 2 if failure == "is cancelled" else math.inf
        with anyio.move_on_after(patience):
            try:
                await start(
                    Grabbing, registry, groups, held, FAILURES[failure],
                    name="it", link=True, timeout=1 if failure == "takes too long" else None,
                )  # fmt: skip
            except (InitError, Ignore):
                pass
        seen.extend([registered(), registry.select(), groups.members("group")])
        seen.append(current_process().links)
        assert registry._ledger._holders == {}
        assert groups._ledger._holders == {}

    with registry:
        async with Scope() as scope:
            assert await scope.spawn(starter).wait() is NORMAL
            pid, timer, its_alias, linked, unlinked = held
            await anyio.sleep(1)

            assert seen == [[], [], [], []]
            assert not pid.alive
            assert isinstance(timer, Timer)
            assert not timer.active
            assert isinstance(its_alias, Alias)
            assert not its_alias.send("late")
            assert not unlinked._process._watchers
            # What was linked with it has heard why, like anybody's peer.
            assert linked.alive == (pid.reason is NORMAL)
            assert unlinked.alive


@virtual
async def test_a_name_that_a_failed_server_had_can_be_given_to_the_next_at_once() -> None:
    attempts: list[int] = []

    class Fragile(GenServer):
        def init(self) -> None:
            attempts.append(len(attempts))
            if len(attempts) < 50:
                raise ValueError

    with Registry():
        async with Scope():
            for _ in range(49):
                with pytest.raises(InitError) as failure:
                    await start(Fragile, name="it")
                assert isinstance(failure.value.reason, ValueError)
            ref = await start(Fragile, name="it")

            assert whereis("it") == ref.pid


# Its end.


class Orderly(GenServer):
    """Takes its time to clean up, and has a name and a group until then."""

    def init(self, groups: Groups, seen: list[object]) -> None:
        self._seen = seen
        groups.join("group")

    async def terminate(self, reason: Any) -> None:
        await anyio.sleep(5)
        self._seen.append("cleaned up")


@virtual
async def test_the_first_of_two_that_stop_a_server_gives_the_reason() -> None:
    failures: list[ServerDownError] = []

    async def late(ref: ServerRef[Orderly]) -> None:
        with pytest.raises(ServerDownError) as failure:
            await stop(ref, "second")
        failures.append(failure.value)

    async with Scope(), anyio.create_task_group() as tg:
        ref: ServerRef[Orderly] = await start(Orderly, Groups(), [])
        tg.start_soon(stop, ref, "first")
        await anyio.sleep(1)
        tg.start_soon(late, ref)

    assert ref.pid.reason == "first"
    assert failures[0].reason == "first"


@virtual
async def test_all_who_stop_or_wait_go_on_when_it_has_cleaned_up_and_released_its_names() -> None:
    groups, seen = Groups(), list[Any]()

    async def waiting(fn: Callable[..., Awaitable[object]], *args: object) -> None:
        await fn(*args)
        seen.append((whereis("orderly"), groups.members("group"), anyio.current_time()))

    with Registry():
        async with Scope(), anyio.create_task_group() as tg:
            ref: ServerRef[Orderly] = await start(Orderly, groups, seen, name="orderly")
            for _ in range(5):
                tg.start_soon(waiting, ref.wait)
                tg.start_soon(waiting, ref.pid.wait)
            tg.start_soon(waiting, stop, ref)
            await anyio.sleep(1)
            # One that comes late waits as well.
            tg.start_soon(waiting, ref.wait)

    assert seen[0] == "cleaned up"
    assert seen[1:] == [(None, [], 5)] * 12


@virtual
async def test_whoever_waits_for_an_end_may_start_the_next_under_that_name() -> None:
    with Registry():
        async with Scope():
            for _ in range(20):
                ref: ServerRef[Orderly] = await start(Orderly, Groups(), [], name="orderly")
                await stop(ref)


# Work that a server has others do.


class Boss(GenServer):
    """Has each call done by a process of its own, and serves others meanwhile."""

    def handle_call(self, message: Any, from_: From) -> Any:
        spawn_link(self._work, message, from_)
        return NO_REPLY

    async def _work(self, message: Any, from_: From) -> None:
        await anyio.sleep(message)
        if message == 3:
            raise ValueError("this one cannot be done")
        from_.reply(f"{message} done")

    @on_call
    def ping(self) -> str:
        return "pong"


@virtual
async def test_a_server_serves_others_while_a_process_of_its_own_works_on_a_call() -> None:
    async with Scope():
        ref: ServerRef[Boss] = await start(Boss)
        slow, fast = send_request(ref, 2), send_request(ref, 1)

        assert await ref.call(Boss.ping) == "pong"
        assert anyio.current_time() == 0
        await anyio.sleep(1.5)
        assert (fast.value, slow.over) == ("1 done", False)
        await anyio.sleep(1)
        assert slow.value == "2 done"


@virtual
async def test_the_crash_of_a_process_that_works_on_a_call_is_heard_by_all_who_wait() -> None:
    async with Scope():
        ref: ServerRef[Boss] = await start(Boss)
        requests = [send_request(ref, 3), send_request(ref, 5)]
        reason = await ref.wait()

        assert isinstance(reason, ValueError)
        assert anyio.current_time() == 3
        for request in requests:
            assert isinstance(request.error, ServerDownError)
            assert request.error.reason is reason


class Plain(GenServer):
    """Has no callbacks of its own."""

    @on_call
    def ping(self) -> str:
        return "pong"


@virtual
@pytest.mark.parametrize(
    "message",
    [None, 0, "text", b"", object(), ValueError, ValueError(), (), Stop(), NO_REPLY, NoReply(),
     NORMAL, Stopped(1), Ignore, Exit(), lambda: 1 / 0],
    ids=repr,
)  # fmt: skip
async def test_a_message_that_a_server_does_not_know_does_not_harm_it(message: object) -> None:
    async with Scope():
        ref: ServerRef[Plain] = await start(Plain)
        ref.send(message)

        assert await ref.call(Plain.ping) == "pong"


@virtual
async def test_exits_and_downs_that_a_server_does_not_know_do_not_harm_it() -> None:
    class Trapping(Plain):
        trap_exit = True

        def init(self) -> None:
            spawn_link(anyio.sleep, 1)
            self.process.monitor(spawn(anyio.sleep, 1))

    async with Scope():
        ref: ServerRef[Trapping] = await start(Trapping)
        ref.pid.exit("boom")
        await anyio.sleep(2)

        assert await ref.call(Trapping.ping) == "pong"


@virtual
async def test_the_report_of_a_crash_in_a_call_names_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Naive(GenServer):
        def handle_call(self, message: Any, from_: From) -> Any:
            raise ValueError("no")

    async with Scope() as scope:
        ref: ServerRef[Naive] = await start(Naive)
        pid = scope.spawn(call, ref, "the question", label="curious")
        await pid.wait()

    report = next(record for record in caplog.records if "server" in record.getMessage())
    assert f"{pid.id.serial} curious" in report.getMessage()
    assert "call from <Pid" in report.getMessage()
    assert "the question" not in report.getMessage()
    assert report.exc_info is not None
    assert report.exc_info[2] is not None  # its stack


@virtual
async def test_a_server_hears_of_its_callers_end_if_it_wants_to() -> None:
    class Caring(GenServer):
        trap_exit = True

        def init(self, ends: list[object]) -> None:
            self._ends = ends

        def handle_call(self, message: Any, from_: From) -> Any:
            assert from_.sender is not None
            if message == "link":
                self.process.link(from_.sender)
            else:
                self.process.monitor(from_.sender)

        def handle_info(self, message: Any) -> None:
            self._ends.append(message)

    ends: list[Any] = []

    async def client(ref: ServerRef[Caring], how: str) -> None:
        await call(ref, how)
        raise Exit("gone")

    async with Scope() as scope:
        ref: ServerRef[Caring] = await start(Caring, ends)
        linked = scope.spawn(client, ref, "link")
        await anyio.sleep(1)
        monitored = scope.spawn(client, ref, "monitor")
        await anyio.sleep(1)

        assert ends[0] == Exited(linked, "gone")
        assert isinstance(ends[1], Down)
        assert (ends[1].process, ends[1].reason) == (monitored, "gone")


@virtual
@pytest.mark.parametrize("hook", ["cast", "info", "continue", "timeout"])
async def test_all_who_wait_hear_of_a_bad_return(hook: str) -> None:
    class Careless(GenServer):
        def handle_call(self, message: Any, from_: From) -> Any:
            return NO_REPLY

        def handle_cast(self, message: Any) -> Any:
            wishes = {"continue": NoReply(then=1), "timeout": NoReply(timeout=1)}
            return wishes.get(hook, "bad")

        def handle_info(self, message: Any) -> Any:
            return "bad"

        def handle_continue(self, argument: Any) -> Any:
            return "bad"

        def handle_timeout(self) -> Any:
            return "bad"

    async with Scope():
        ref: ServerRef[Careless] = await start(Careless)
        waiting = [send_request(ref, number) for number in range(3)]
        if hook == "info":
            ref.send("x")
        else:
            cast(ref, "x")
        reason = await ref.wait()

        assert isinstance(reason, BadReturnError)
        assert reason.callback == f"handle_{hook}"
        for request in waiting:
            assert isinstance(request.error, ServerDownError)
            assert request.error.reason is reason
