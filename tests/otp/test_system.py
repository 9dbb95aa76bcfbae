"""What any server answers beside its own messages: state, status, suspension, traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from backplane.otp import (
    NO_REPLY,
    NOPROC,
    NORMAL,
    CallingSelfError,
    CallTimeoutError,
    From,
    GenServer,
    NoReply,
    Reply,
    Scope,
    ServerDownError,
    ServerRef,
    Stop,
    call,
    cast,
    send_request,
    start,
    stop,
    system,
    wait_response,
)
from backplane.otp._registry import Registry

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)
real = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
S = TypeVar("S", bound=GenServer)


class Counter(GenServer):
    """Counts what it is cast, and answers how far it has come."""

    def init(self, n: int = 0) -> None:
        self.n = n

    def handle_call(self, message: Any, from_: From) -> Any:
        return message(self, from_) if callable(message) else self.n

    def handle_cast(self, message: Any) -> Any:
        if callable(message):
            return message(self)
        self.n += message
        return None

    def handle_info(self, message: Any) -> Any:
        return self.handle_cast(message)

    def handle_timeout(self) -> None:
        self.n += 1000


async def up(kind: type[S], *args: Any, **options: Any) -> ServerRef[S]:
    """Start a server; unlike ``start``, with whatever arguments."""
    return await start(kind, *args, **options)


QUERIES: dict[str, Callable[[ServerRef[Any]], Any]] = {
    "get_state": system.get_state,
    "replace_state": lambda ref: system.replace_state(ref, lambda state: state),
    "get_status": system.get_status,
    "statistics": system.statistics,
    "suspend": system.suspend,
    "resume": system.resume,
    "trace": lambda ref: system.trace(ref, lambda *_: None),
    "log": system.log,
    "untrace": system.untrace,
}
"""All that any server answers."""


async def test_the_state_is_what_the_instance_holds() -> None:
    async with Scope():
        ref = await up(Counter, 5)

        assert await system.get_state(ref) == {"n": 5}


async def test_a_replaced_state_is_returned_and_used() -> None:
    async with Scope():
        ref = await up(Counter, 5)

        assert await system.replace_state(ref, lambda state: {"n": state["n"] + 1}) == {"n": 6}
        assert await call(ref, "how far") == 6


@virtual
async def test_a_replaced_state_loses_what_it_does_not_have() -> None:
    class Two(Counter):
        def init(self, n: int = 0) -> None:
            self.n, self.other = n, "other"

    async with Scope():
        ref = await up(Two)
        await system.replace_state(ref, lambda _: {"n": 1})

        assert await system.get_state(ref) == {"n": 1}


@virtual
async def test_a_server_may_say_what_its_state_is() -> None:
    class Own(Counter):
        def get_state(self) -> int:
            return self.n

        def replace_state(self, state: int) -> None:
            self.n = state

    async with Scope():
        ref = await up(Own, 5)

        assert await system.get_state(ref) == 5
        assert await system.replace_state(ref, lambda n: n * 2) == 10
        assert await call(ref, "how far") == 10


@virtual
async def test_a_replacement_that_raises_leaves_the_state_and_errors_to_its_caller() -> None:
    def spoil(state: dict[str, Any]) -> Any:
        state["n"] = 100
        raise ValueError("no")

    async with Scope():
        ref = await up(Counter, 5)
        with pytest.raises(ValueError, match="no"):
            await system.replace_state(ref, spoil)

        assert await system.get_state(ref) == {"n": 5}
        assert await call(ref, "how far") == 5


@virtual
@pytest.mark.parametrize("state", [5, None, [1, 2], {1: 2}], ids=repr)
async def test_a_replacement_that_is_no_state_leaves_the_state(state: object) -> None:
    async with Scope():
        ref = await up(Counter, 5)
        with pytest.raises((TypeError, ValueError)):
            await system.replace_state(ref, lambda _: state)

        assert await call(ref, "how far") == 5
        assert await system.get_state(ref) == {"n": 5}


@virtual
async def test_a_get_state_that_raises_errors_to_its_caller() -> None:
    class Clumsy(Counter):
        def get_state(self) -> Any:
            raise ValueError("no")

    async with Scope():
        ref = await up(Clumsy, 5)
        with pytest.raises(ValueError, match="no"):
            await system.get_state(ref)

        assert await call(ref, "how far") == 5


@virtual
async def test_traces_and_statistics_are_no_part_of_the_state() -> None:
    async with Scope():
        ref = await up(Counter, 5)
        await system.statistics(ref, on=True)
        await system.log(ref)

        assert await system.get_state(ref) == {"n": 5}
        await system.replace_state(ref, lambda _: {"n": 6})
        assert await system.statistics(ref) is not None
        await call(ref, "how far")
        assert (await system.get_status(ref)).log != []


# Suspension.


@virtual
async def test_a_suspended_server_leaves_its_messages_alone_until_it_goes_on() -> None:
    async with Scope():
        ref = await up(Counter)
        await system.suspend(ref)
        cast(ref, 1)
        ref.pid.send(2)
        request = send_request(ref, "how far")
        await anyio.sleep(10)

        assert await system.get_state(ref) == {"n": 0}
        with pytest.raises(CallTimeoutError):
            await wait_response(request, 0)
        await system.resume(ref)
        assert await wait_response(request) == 3
        assert await system.get_state(ref) == {"n": 3}


@virtual
async def test_suspending_twice_is_suspending_once_and_so_is_resuming() -> None:
    async with Scope():
        ref = await up(Counter)
        await system.resume(ref)
        await system.suspend(ref)
        await system.suspend(ref)
        assert (await system.get_status(ref)).suspended
        await system.resume(ref)
        await system.resume(ref)

        assert not (await system.get_status(ref)).suspended
        assert await call(ref, "how far") == 0


@virtual
async def test_a_call_to_a_suspended_server_times_out_and_is_dropped() -> None:
    async with Scope():
        ref = await up(Counter)
        await system.suspend(ref)
        with pytest.raises(CallTimeoutError):
            await call(ref, lambda it, _: it.handle_cast(100))
        await system.resume(ref)

        assert await call(ref, "how far") == 0
        assert anyio.current_time() == 5


@virtual
@pytest.mark.parametrize("query", QUERIES)
async def test_a_suspended_server_answers_every_query(query: str) -> None:
    async with Scope():
        ref = await up(Counter, 5)
        await system.suspend(ref)
        await QUERIES[query](ref)

        assert (await system.get_status(ref)).suspended == (query != "resume")


@virtual
async def test_a_traced_server_drops_calls_that_were_given_up_too() -> None:
    async with Scope():
        ref = await up(Counter)
        await system.log(ref)
        await system.suspend(ref)
        with pytest.raises(CallTimeoutError):
            await call(ref, lambda it, _: it.handle_cast(100), timeout=1)
        await system.resume(ref)

        assert await call(ref, "how far") == 0


@virtual
async def test_a_replacement_works_in_a_suspended_server() -> None:
    async with Scope():
        ref = await up(Counter, 5)
        await system.suspend(ref)
        await system.replace_state(ref, lambda _: {"n": 7})
        await system.resume(ref)

        assert await call(ref, "how far") == 7


@virtual
async def test_a_query_that_fails_leaves_a_server_suspended() -> None:
    async with Scope():
        ref = await up(Counter, 5)
        await system.suspend(ref)
        with pytest.raises(ZeroDivisionError):
            await system.replace_state(ref, lambda _: 1 / 0)

        assert (await system.get_status(ref)).suspended


# Who is asked, and when.


@virtual
@pytest.mark.parametrize("query", QUERIES)
async def test_a_query_goes_in_front_of_all_messages(query: str) -> None:
    async with Scope():
        ref = await up(Counter)
        for _ in range(20_000):
            cast(ref, 1)
        await QUERIES[query](ref)

        assert (await system.get_state(ref))["n"] < 15_000


@virtual
@pytest.mark.parametrize("query", QUERIES)
async def test_a_query_of_one_that_has_ended_says_so(query: str) -> None:
    async with Scope():
        ref = await up(Counter)
        await stop(ref)
        with pytest.raises(ServerDownError) as failure:
            await QUERIES[query](ref)

        assert failure.value.reason is NOPROC


@virtual
async def test_a_query_that_waits_when_the_server_ends_hears_why() -> None:
    async def end(it: Counter) -> Stop:
        await anyio.sleep(1)
        return Stop("boom")

    async with Scope():
        ref = await up(Counter)
        cast(ref, end)
        await anyio.sleep(0.5)
        with pytest.raises(ServerDownError) as failure:
            await system.get_state(ref)

        assert failure.value.reason == "boom"


@virtual
async def test_a_query_that_is_given_up_is_not_done() -> None:
    async with Scope():
        ref = await up(Counter, 5)
        cast(ref, lambda _: anyio.sleep(3))
        await anyio.sleep(1)
        with pytest.raises(CallTimeoutError):
            await system.replace_state(ref, lambda _: {"n": 100}, timeout=1)
        await anyio.sleep(10)

        assert await call(ref, "how far") == 5


@virtual
@pytest.mark.parametrize("query", QUERIES)
async def test_a_server_that_queries_itself_is_refused(query: str) -> None:
    async def ask(it: Counter, from_: From) -> str:
        with pytest.raises(CallingSelfError):
            await QUERIES[query](ServerRef(it.process.pid, Counter))
        return "refused"

    async with Scope():
        ref = await up(Counter)

        assert await call(ref, ask) == "refused"


@virtual
async def test_a_server_is_queried_by_name_via_and_pid() -> None:
    with Registry() as registry:
        async with Scope():
            ref = await up(Counter, 5, name="it")
            targets: list[Any] = ["it", registry.via("it"), ref.pid, ref]

            assert [await system.get_state(each) for each in targets] == [{"n": 5}] * 4


@virtual
async def test_a_query_is_answered_before_the_first_message_and_after_init() -> None:
    async with Scope() as scope, anyio.create_task_group() as tg:

        class Slow(Counter):
            async def init(self, n: int = 0) -> None:  # type: ignore[override]
                await anyio.sleep(3)
                self.n = n

        tg.start_soon(start, Slow, 7)
        await anyio.sleep(1)
        (pid,) = scope.processes

        assert await system.get_state(pid) == {"n": 7}
        assert anyio.current_time() == 3


@virtual
async def test_queries_are_answered_between_two_continuations() -> None:
    class Busy(Counter):
        def init(self, n: int = 0) -> Any:
            self.n = n
            return NoReply(then="on")

        def handle_continue(self, argument: Any) -> NoReply:
            self.n += 1
            return NoReply(then="on") if self.n < 100_000 else NoReply()

    async with Scope():
        ref = await up(Busy)

        assert (await system.get_state(ref))["n"] < 50_000


# Status.


@virtual
async def test_a_status_tells_what_a_server_is_doing() -> None:
    class Shown(Counter):
        def format_status(self, status: dict[str, Any]) -> dict[str, Any]:
            return status

    async with Scope() as scope:
        ref = await up(Shown, 5)
        other = scope.spawn(anyio.sleep_forever)
        await call(ref, lambda it, _: it.process.link(other))
        await call(ref, lambda it, _: setattr(it.process, "trap_exit", True))
        await system.suspend(ref)
        cast(ref, 1)
        cast(ref, 2)
        status = await system.get_status(ref)

        assert status == system.Status(
            server=repr(ref.pid),
            state={"n": 5},
            suspended=True,
            mailbox=2,
            links=1,
            trap_exit=True,
            statistics=None,
            log=[],
        )


@virtual
async def test_a_status_does_not_show_the_state_by_default() -> None:
    async with Scope():
        status = await system.get_status(await up(Counter, 123456))

        assert "123456" not in repr(status)


@virtual
@pytest.mark.parametrize("result", [ValueError("no"), None], ids=repr)
async def test_a_status_whose_formatting_fails_tells_the_rest(result: Any) -> None:
    class Clumsy(Counter):
        def format_status(self, status: dict[str, Any]) -> Any:
            if isinstance(result, Exception):
                raise result
            return result

    async with Scope():
        ref = await up(Clumsy, 123456)
        await system.suspend(ref)
        status = await system.get_status(ref)

        assert status.suspended
        assert "123456" not in repr(status)


@virtual
async def test_format_status_redacts_the_log() -> None:
    class Discreet(Counter):
        def format_status(self, status: dict[str, Any]) -> dict[str, Any]:
            return {key: "redacted" if value else value for key, value in status.items()}

    async with Scope():
        ref = await up(Discreet)
        await system.log(ref)
        cast(ref, 123456)
        await call(ref, "how far")
        status = await system.get_status(ref)

        assert "123456" not in repr(status)


# Statistics and traces.


@virtual
async def test_statistics_count_from_when_they_are_turned_on() -> None:
    async with Scope():
        ref = await up(Counter)
        cast(ref, 1)
        assert await system.statistics(ref) is None
        await anyio.sleep(3)
        begun = await system.statistics(ref, on=True)
        assert begun == system.Statistics(started_at=3, messages_in=0)
        cast(ref, 1)
        ref.pid.send(1)
        await call(ref, "how far")

        assert await system.statistics(ref) == system.Statistics(started_at=3, messages_in=3)
        assert await system.statistics(ref, on=False) is None
        assert await system.statistics(ref) is None


@virtual
async def test_statistics_that_were_given_out_do_not_change() -> None:
    async with Scope():
        ref = await up(Counter)
        before = await system.statistics(ref, on=True)
        await call(ref, "how far")

        assert before == system.Statistics(started_at=0, messages_in=0)


@virtual
async def test_a_log_keeps_the_last_messages_and_answers() -> None:
    async with Scope():
        ref = await up(Counter)
        await system.log(ref, keep=3)
        for number in range(10):
            cast(ref, number)
        await call(ref, "how far")
        log = (await system.get_status(ref)).log

        assert [way for way, _ in log] == ["in", "in", "out"]
        assert "9" in repr(log[0])
        assert "how far" in repr(log[1])
        assert log[2] == ("out", system.Answer(45, log[1][1]))


@virtual
@pytest.mark.parametrize("how", ["value", "reply", "stop", "later", "none"])
async def test_a_trace_sees_every_answer(how: str) -> None:
    def answer(it: Counter, from_: From) -> Any:
        match how:
            case "reply":
                return Reply("answer")
            case "stop":
                return Stop(NORMAL, "answer")
            case "later":
                from_.reply("answer")
                return NO_REPLY
            case "none":
                return None
            case _:
                return "answer"

    seen: list[tuple[str, Any]] = []
    async with Scope():
        ref = await up(Counter)
        await system.trace(ref, lambda way, message: seen.append((way, message)))
        expected = await call(ref, answer)

    (asked,) = [message for way, message in seen if way == "in"]
    answers = [message for way, message in seen if way == "out"]
    assert answers == [system.Answer(expected, asked)]


@virtual
async def test_a_trace_sees_messages_of_all_kinds_but_queries() -> None:
    seen: list[str] = []

    async with Scope():
        ref = await up(Counter)
        await system.trace(ref, lambda way, message: seen.append(f"{way} {message!r}"))
        cast(ref, 111)
        ref.pid.send(222)
        await system.get_state(ref)
        await call(ref, "333")
        cast(ref, lambda _: NoReply(timeout=1))
        await anyio.sleep(2)

    ins = [each for each in seen if each.startswith("in")]
    assert len(ins) == 5
    for number, each in zip(["111", "222", "333"], ins, strict=False):
        assert number in each


@virtual
async def test_a_trace_that_raises_is_taken_away_and_the_server_goes_on() -> None:
    seen: list[object] = []

    def once(way: str, message: object) -> None:
        seen.append(message)
        raise ValueError

    async with Scope():
        ref = await up(Counter)
        await system.trace(ref, once)
        await system.log(ref)
        cast(ref, 1)
        cast(ref, 2)

        assert await call(ref, "how far") == 3
        assert len(seen) == 1
        assert len((await system.get_status(ref)).log) == 4


@virtual
async def test_untrace_undoes_traces_and_logs() -> None:
    seen: list[object] = []

    async with Scope():
        ref = await up(Counter)
        await system.untrace(ref)
        await system.trace(ref, lambda way, message: seen.append(message))
        await system.log(ref)
        await system.untrace(ref)
        cast(ref, 1)

        assert await call(ref, "how far") == 1
        assert seen == []
        assert (await system.get_status(ref)).log == []


@virtual
async def test_the_crash_itself_is_traced() -> None:
    seen: list[str] = []

    def fail(it: Counter) -> None:
        raise ValueError

    async with Scope():
        ref = await up(Counter)
        await system.trace(ref, lambda way, message: seen.append(way))
        cast(ref, fail)

        assert isinstance(await ref.wait(), ValueError)
    assert seen == ["in"]


# Timeouts and threads.


@virtual
@pytest.mark.parametrize("query", [name for name in QUERIES if name != "suspend"])
async def test_a_query_restarts_an_idle_timeout(query: str) -> None:
    async with Scope():
        ref = await up(Counter)
        await call(ref, lambda *_: Reply(None, timeout=3))
        await anyio.sleep(2)
        await QUERIES[query](ref)
        await anyio.sleep(2)
        before = (await system.get_state(ref))["n"]
        await anyio.sleep(4)

        assert before == 0
        assert (await system.get_state(ref))["n"] == 1000


def in_loop(library: str, fn: Any, *args: Any) -> Any:
    """Run an async function in a loop of this thread's own."""
    return anyio.run(fn, *args, backend=library)


@real
async def test_a_server_is_queried_from_another_thread() -> None:
    async def ask(ref: ServerRef[Counter]) -> list[Any]:
        await system.suspend(ref)
        status = await system.get_status(ref)
        await system.resume(ref)
        return [await system.get_state(ref), status.suspended]

    async with Scope():
        ref = await up(Counter, 5)
        for library in ("asyncio", "trio"):
            found = await anyio.to_thread.run_sync(in_loop, library, ask, ref)

            assert found == [{"n": 5}, True]
