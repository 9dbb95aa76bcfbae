"""Methods that are marked as calls and casts, and the typed handle that reaches them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from backplane.otp import (
    NO_REPLY,
    NOPROC,
    NORMAL,
    SHUTDOWN,
    BadReturnError,
    CallingSelfError,
    CallTimeoutError,
    From,
    GenServer,
    MailboxFullError,
    NoProcessError,
    NoReply,
    NotServedError,
    Reply,
    ReplyError,
    Scope,
    ServerDownError,
    ServerRef,
    Stop,
    WrongServerError,
    call,
    cast,
    on_call,
    on_cast,
    reply_and,
    start,
    stop,
    system,
)
from backplane.otp._registry import Registry

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)
S = TypeVar("S", bound=GenServer)


class Counter(GenServer):
    """Has calls and casts of both kinds, and callbacks beside them."""

    def init(self, n: int = 0) -> None:
        self.n = n

    @on_call
    def add(self, k: int = 1, *, times: int = 1) -> int:
        self.n += k * times
        return self.n

    @on_call
    async def slowly(self, seconds: float) -> str:
        await anyio.sleep(seconds)
        return "slept"

    @on_call
    def fail(self, error: Exception) -> None:
        raise error

    @on_cast
    def reset(self, n: int = 0) -> None:
        self.n = n

    @on_cast
    async def bump(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.n += 1

    @on_cast
    def crash(self, error: Exception) -> None:
        raise error

    def unmarked(self) -> None:
        """Nobody may call this from outside."""
        self.n = -1

    def _private(self) -> None:
        self.n = -2

    def handle_call(self, message: Any, from_: From) -> Any:
        return ("called", message, self.n)

    def handle_cast(self, message: Any) -> None:
        self.n += int(message)


class Louder(Counter):
    """Inherits some, overrides some, adds some."""

    @on_call
    def add(self, k: int = 1, *, times: int = 1) -> int:
        return super().add(k * 10, times=times)

    @on_call
    def shout(self) -> str:
        return "!" * self.n


class Other(GenServer):
    """Another server altogether."""

    @on_call
    def add(self) -> str:
        return "another server's"

    @on_cast
    def reset(self) -> None:
        self.n = "spoilt"


async def up(kind: type[S], *args: Any, **options: Any) -> ServerRef[S]:
    """Start a server; unlike ``start``, with whatever arguments."""
    return await start(kind, *args, **options)


async def test_a_marked_method_is_called_with_its_arguments() -> None:
    async with Scope():
        ref = await up(Counter, 5)

        assert await ref.call(Counter.add) == 6
        assert await ref.call(Counter.add, 2) == 8
        assert await ref.call(Counter.add, k=2, times=3) == 14


async def test_an_async_method_is_awaited() -> None:
    async with Scope():
        ref = await up(Counter)

        assert await ref.call(Counter.slowly, 0) == "slept"


async def test_casts_are_done_in_order_with_calls() -> None:
    async with Scope():
        ref = await up(Counter, 5)
        ref.cast(Counter.reset)
        ref.cast(Counter.bump)
        ref.cast(Counter.bump)

        assert await ref.call(Counter.add) == 3
        ref.cast(Counter.reset, n=10)
        assert await ref.call(Counter.add) == 11


async def test_both_styles_live_in_one_server() -> None:
    async with Scope():
        ref = await up(Counter, 5)
        cast(ref, 2)
        ref.cast(Counter.bump)

        assert await call(ref, "text") == ("called", "text", 8)
        assert await ref.call(Counter.add) == 9


@virtual
@pytest.mark.parametrize(
    "method",
    [
        Counter.unmarked,
        Counter._private,
        Counter.terminate,
        Counter.init,
        Counter.handle_call,
        Counter.reset,
        Other.add,
        Louder.shout,
        len,
        lambda _: None,
        None,
        "add",
    ],
    ids=lambda method: getattr(method, "__qualname__", repr(method)),
)
async def test_what_is_no_call_of_that_server_is_refused_and_not_run(method: Any) -> None:
    async with Scope():
        ref = await up(Counter, 5)
        with pytest.raises(NotServedError) as failure:
            await ref.call(method)

        assert failure.value.method is method
        assert failure.value.kind == "call"
        assert isinstance(failure.value, TypeError)
        assert "cannot be call" in str(failure.value)
        assert await system.get_state(ref) == {"n": 5}


@virtual
@pytest.mark.parametrize(
    "method",
    [Counter.unmarked, Counter._private, Counter.add, Other.reset, Counter.handle_cast, None],
    ids=lambda method: getattr(method, "__qualname__", repr(method)),
)
async def test_what_is_no_cast_of_that_server_is_refused_and_not_run(method: Any) -> None:
    async with Scope():
        ref = await up(Counter, 5)
        with pytest.raises(NotServedError):
            ref.cast(method)

        assert await system.get_state(ref) == {"n": 5}


class Sly(GenServer):
    """Marks what it should not. Done by hand: a decorator may refuse it when the class is made."""

    def _secret(self) -> int:
        return 42


@virtual
async def test_a_private_method_cannot_be_marked_and_called() -> None:
    async def mark_and_call() -> None:
        on_call(Sly._secret)
        ref = await up(Sly)
        await ref.call(Sly._secret)

    async with Scope():
        with pytest.raises((NotServedError, ValueError, TypeError)):
            await mark_and_call()


@virtual
async def test_a_bound_method_is_refused() -> None:
    async with Scope():
        ref = await up(Counter, 5)
        with pytest.raises(NotServedError):
            await ref.call(Counter().add)  # type: ignore[call-overload]


@virtual
async def test_inherited_methods_are_served() -> None:
    async with Scope():
        ref = await up(Louder, 1)

        assert await ref.call(Louder.slowly, 0) == "slept"
        assert await ref.call(Counter.slowly, 0) == "slept"
        ref.cast(Louder.bump)
        ref.cast(Counter.bump)
        assert await ref.call(Louder.shout) == "!!!"


@virtual
async def test_an_overridden_method_is_the_overriding_one() -> None:
    async with Scope():
        ref = await up(Louder)

        assert await ref.call(Louder.add, 2) == 20


@virtual
async def test_a_method_named_by_its_base_runs_as_overridden() -> None:
    async with Scope():
        ref = await up(Louder)

        assert await ref.call(Counter.add, 2) == 20


@virtual
async def test_a_handle_of_the_base_reaches_a_server_that_inherits() -> None:
    async with Scope():
        ref = await up(Louder)
        base = ServerRef(ref.pid, Counter)

        assert await base.call(Counter.slowly, 0) == "slept"
        assert await base.call(Counter.add, 2) == 20


@virtual
async def test_a_handle_of_the_wrong_class_runs_nothing_on_the_server() -> None:
    async with Scope():
        ref = await up(Counter, 5)
        wrong = ServerRef(ref.pid, Other)
        with pytest.raises(WrongServerError):
            await wrong.call(Other.add)

        assert ref.pid.alive
        assert await system.get_state(ref) == {"n": 5}


@virtual
async def test_a_cast_by_a_handle_of_the_wrong_class_does_not_spoil_the_server() -> None:
    async with Scope():
        ref = await up(Counter, 5)
        try:
            ServerRef(ref.pid, Other).cast(Other.reset)
        except NotServedError:
            pass
        await anyio.sleep(1)

        if ref.pid.alive:
            assert await system.get_state(ref) == {"n": 5}
        else:
            assert isinstance(ref.pid.reason, NotServedError)


@virtual
@pytest.mark.parametrize("args", [("one", "too", "many"), ()], ids=repr)
async def test_wrong_arguments_are_the_mistake_of_the_caller_who_alone_hears_of_it(
    args: Any,
) -> None:
    async with Scope():
        ref = await up(Counter)
        with pytest.raises(TypeError, match="slowly"):
            await ref.call(Counter.slowly, *args)

        assert await ref.call(Counter.add) == 1


@virtual
async def test_a_cast_with_wrong_arguments_is_logged_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Scope():
        ref: Any = await up(Counter)
        ref.cast(Counter.reset, "one", "too", "many")
        ServerRef(ref.pid, Other).cast(Other.reset)

        assert await ref.call(Counter.add) == 1
    assert "reset" in caplog.text
    assert len(caplog.records) == 2


@virtual
@pytest.mark.parametrize("traced", [False, True])
async def test_a_type_error_of_the_method_itself_ends_the_server(traced: bool) -> None:
    async with Scope():
        ref = await up(Counter)
        if traced:
            await system.log(ref)
        with pytest.raises(ServerDownError) as failure:
            await ref.call(Counter.fail, TypeError("in the method"))

        assert str(failure.value.reason) == "in the method"


@virtual
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("how", ["method", "async method", "callback", "deferred"])
async def test_a_handler_may_raise_what_only_its_caller_gets(how: str, traced: bool) -> None:
    class Picky(GenServer):
        @on_call
        def look(self) -> None:
            raise ReplyError(KeyError("nothing there"))

        @on_call
        async def look_again(self) -> None:
            await anyio.lowlevel.checkpoint()
            raise ReplyError(KeyError("nothing there"))

        async def handle_call(self, message: Any, from_: From) -> Any:
            if message == "deferred":
                from_.reply("answered before")
            elif message == "fine":
                return message
            raise ReplyError(KeyError("nothing there"))

    async with Scope():
        ref = await up(Picky)
        if traced:
            await system.log(ref)
        if how == "deferred":
            assert await call(ref, how) == "answered before"
        else:
            with pytest.raises(KeyError, match="nothing there"):
                await (
                    call(ref, how)
                    if how == "callback"
                    else ref.call(Picky.look if how == "method" else Picky.look_again)
                )

        assert await call(ref, "fine") == "fine"


@virtual
@pytest.mark.parametrize("traced", [False, True])
async def test_a_cast_that_raises_a_reply_error_is_logged_and_harms_nobody(
    traced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with Scope():
        ref = await up(Counter)
        if traced:
            await system.log(ref)
        ref.cast(Counter.crash, ReplyError(KeyError("nothing there")))

        assert await ref.call(Counter.add) == 1
    assert "nothing there" in caplog.text


@virtual
async def test_the_deadline_of_a_refused_call_does_not_bind_what_comes_next() -> None:
    class Picky(GenServer):
        def init(self, other: ServerRef[Counter]) -> None:
            self.other = other

        @on_call
        def refuse(self) -> None:
            raise ReplyError(KeyError())

        @on_cast
        async def ask(self) -> None:
            self.slept = await self.other.within(50).call(Counter.slowly, 20)

    async with Scope():
        ref = await up(Picky, await up(Counter))
        with pytest.raises(KeyError):
            await ref.within(1).call(Picky.refuse)
        ref.cast(Picky.ask)
        await anyio.sleep(30)

        assert (await system.get_state(ref))["slept"] == "slept"


@virtual
async def test_what_a_called_method_raises_ends_the_server_and_is_the_reason() -> None:
    error = ValueError("broken")

    async with Scope():
        ref = await up(Counter)
        with pytest.raises(ServerDownError) as failure:
            await ref.call(Counter.fail, error)

        assert failure.value.reason is error
        assert await ref.wait() is error
        assert "fail(" in repr(failure.value.request)


@virtual
async def test_what_a_cast_method_raises_ends_the_server() -> None:
    error = ValueError("broken")

    async with Scope():
        ref = await up(Counter)
        ref.cast(Counter.crash, error)

        assert await ref.wait() is error


@virtual
async def test_a_method_may_say_what_comes_next() -> None:
    class Deciding(GenServer):
        def init(self) -> None:
            self.log: list[object] = []

        @on_call
        def answer(self) -> Any:
            return Reply("answer", then="more")

        @on_cast
        def wait(self) -> Any:
            return NoReply(timeout=3)

        @on_call
        def end(self) -> Any:
            return Stop(SHUTDOWN, "bye")

        def handle_continue(self, argument: Any) -> None:
            self.log.append(argument)

        def handle_timeout(self) -> None:
            self.log.append(anyio.current_time())

    async with Scope():
        ref = await up(Deciding)
        assert await ref.call(Deciding.answer) == "answer"
        ref.cast(Deciding.wait)
        await anyio.sleep(10)
        assert await system.get_state(ref) == {"log": ["more", 3]}
        assert await ref.call(Deciding.end) == "bye"

        assert await ref.wait() is SHUTDOWN


@virtual
async def test_a_method_answers_and_says_what_comes_next_in_its_own_type() -> None:
    class Loader(GenServer):
        def init(self) -> None:
            self.did: list[str] = []

        @on_call
        def then(self, key: str) -> str:
            return reply_and(key, then="load")

        @on_call
        def idle(self, key: str) -> str:
            return reply_and(key, timeout=3)

        @on_call
        def last(self, key: str) -> str:
            return reply_and(key, stop="enough")

        def handle_continue(self, argument: str) -> None:
            self.did.append(argument)

        def handle_timeout(self) -> None:
            self.did.append(f"idle at {anyio.current_time()}")

    async with Scope():
        ref = await up(Loader)

        assert await ref.call(Loader.then, "x") == "x"
        assert await ref.call(Loader.idle, "y") == "y"
        await anyio.sleep(5)
        assert await system.get_state(ref) == {"did": ["load", "idle at 3.0"]}
        assert await ref.call(Loader.last, "z") == "z"
        assert await ref.wait() == "enough"


@virtual
async def test_a_cast_method_that_returns_something_is_a_bad_return_with_its_name() -> None:
    class Chatty(GenServer):
        @on_cast
        def talk(self) -> int:
            return 5

    async with Scope():
        ref = await up(Chatty)
        ref.cast(Chatty.talk)  # type: ignore[arg-type]
        reason = await ref.wait()

        assert isinstance(reason, BadReturnError)
        assert reason.callback == "talk"


@virtual
async def test_arguments_may_have_any_name() -> None:
    class Naming(GenServer):
        @on_call
        def call_it(self, method: str, timeout: float = 0) -> str:
            return f"{method} {timeout}"

        @on_cast
        def cast_it(self, method: str) -> None:
            self.method = method

    async with Scope():
        ref: Any = await up(Naming)
        assert await ref.call(Naming.call_it, method="post", timeout=2) == "post 2"
        ref.cast(Naming.cast_it, method="get")
        await anyio.sleep(1)

        assert await system.get_state(ref) == {"method": "get"}


@virtual
async def test_a_method_may_answer_later() -> None:
    class Patient(GenServer):
        def init(self) -> None:
            self.owed: list[From | None] = []

        @on_call
        def ask(self) -> Any:
            self.owed.append(self.current_from())
            return NO_REPLY

        @on_cast
        def answer(self, value: object) -> None:
            (request,) = self.owed
            assert request is not None
            request.reply(value)

    async with Scope(), anyio.create_task_group() as tg:
        ref = await up(Patient)
        heard: list[object] = []

        async def ask() -> None:
            heard.append(await ref.call(Patient.ask))

        tg.start_soon(ask)
        await anyio.sleep(1)
        ref.cast(Patient.answer, 5)

    assert heard == [5]


# The handle.


@virtual
async def test_a_handle_waits_five_seconds_or_as_long_as_it_is_told() -> None:
    async with Scope():
        ref = await up(Counter)
        with pytest.raises(CallTimeoutError):
            await ref.call(Counter.slowly, 50)
        assert anyio.current_time() == 5
        await system.get_state(ref, timeout=None)
        begun = anyio.current_time()
        with pytest.raises(CallTimeoutError):
            await ref.within(2).call(Counter.slowly, 10)

        assert anyio.current_time() == begun + 2
        assert await ref.within(None).call(Counter.slowly, 100) == "slept"
        assert await ref.within(200).call(Counter.slowly, 100) == "slept"


@virtual
async def test_a_handle_within_a_time_is_equal_to_the_handle() -> None:
    async with Scope():
        ref, other = await up(Counter), await up(Counter)

        assert ref.within(3) == ref
        assert hash(ref.within(3)) == hash(ref)
        assert ref != other
        assert ref != ref.pid
        assert len({ref, ref.within(1), other}) == 2
        assert "Counter" in repr(ref)


@virtual
async def test_a_handle_with_a_name_means_whoever_has_it() -> None:
    with Registry():
        async with Scope():
            by_name = ServerRef("counter", Counter)
            with pytest.raises(NoProcessError):
                _ = by_name.pid
            with pytest.raises(ServerDownError) as failure:
                await by_name.call(Counter.add)
            by_name.cast(Counter.reset)
            ref = await up(Counter, 5, name="counter")

            assert failure.value.reason is NOPROC
            assert by_name.pid == ref.pid
            assert await by_name.call(Counter.add) == 6
            await by_name.stop()
            assert await ref.wait() is NORMAL


@virtual
async def test_a_handle_stops_and_waits() -> None:
    async with Scope():
        ref = await up(Counter)
        await ref.stop(SHUTDOWN, timeout=5)

        assert await ref.wait() is SHUTDOWN
        with pytest.raises(ServerDownError):
            await ref.call(Counter.add)
        ref.cast(Counter.reset)


@virtual
async def test_a_server_may_not_call_itself_by_its_handle() -> None:
    class Narcissus(GenServer):
        @on_call
        async def look(self) -> str:
            with pytest.raises(CallingSelfError):
                await ServerRef(self.process.pid, Narcissus).call(Narcissus.look)
            return "looked"

    async with Scope():
        ref = await up(Narcissus)

        assert await ref.call(Narcissus.look) == "looked"


@virtual
async def test_a_server_may_cast_to_itself_by_its_handle() -> None:
    class Winding(GenServer):
        def init(self) -> None:
            self.n = 0

        @on_cast
        def wind(self, n: int) -> None:
            self.n += 1
            if n:
                ServerRef(self.process.pid, Winding).cast(Winding.wind, n - 1)

    async with Scope():
        ref = await up(Winding)
        ref.cast(Winding.wind, 500)
        await anyio.sleep(1)

        assert await system.get_state(ref) == {"n": 501}


@virtual
async def test_the_time_of_a_call_travels_through_methods() -> None:
    class Proxy(GenServer):
        def init(self, behind: ServerRef[Counter]) -> None:
            self.behind = behind

        @on_call
        async def ask(self) -> str:
            self.tried = 1
            return await self.behind.within(None).call(Counter.slowly, 100)

        @on_call
        def tries(self) -> int:
            return self.tried

    async with Scope():
        proxy = await up(Proxy, await up(Counter))
        with pytest.raises(CallTimeoutError):
            await proxy.within(3).call(Proxy.ask)

        assert anyio.current_time() == 3
        assert await proxy.within(None).call(Proxy.tries) == 1
        assert anyio.current_time() == 3


@virtual
async def test_methods_respect_a_bounded_mailbox() -> None:
    async with Scope():
        ref = await up(Counter, capacity=1)
        await system.suspend(ref)
        ref.cast(Counter.reset)
        with pytest.raises(MailboxFullError):
            ref.cast(Counter.reset)
        with pytest.raises(MailboxFullError):
            await ref.call(Counter.add)
        await system.resume(ref)
        await anyio.sleep(1)

        assert await ref.call(Counter.add) == 1


def in_loop(library: str, fn: Any, *args: Any) -> Any:
    """Run an async function in a loop of this thread's own."""
    return anyio.run(fn, *args, backend=library)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
async def test_methods_are_called_from_foreign_threads() -> None:
    class Silent(Counter):
        @on_call
        def never(self) -> NoReply:
            return NO_REPLY

    async def use(ref: ServerRef[Silent]) -> int:
        with pytest.raises(CallTimeoutError):
            await ref.within(0.01).call(Silent.never)
        ref.cast(Counter.bump)
        return await ref.call(Counter.add, 10)

    async with Scope():
        ref = await up(Silent)
        found = [
            await anyio.to_thread.run_sync(in_loop, library, use, ref)
            for library in ("asyncio", "trio")
        ]

        assert found == [11, 22]


@virtual
async def test_a_log_shows_methods_with_their_arguments() -> None:
    async with Scope():
        ref = await up(Counter)
        await system.log(ref)
        ref.cast(Counter.reset, n=3)
        await ref.call(Counter.add, 2, times=4)
        log = (await system.get_status(ref)).log

    assert "reset(n=3)" in repr(log[0])
    assert "add(2, times=4)" in repr(log[1])


def test_the_types_are_as_tight_as_promised(tmp_path: Path) -> None:
    """An ignored error that is none any longer is an error: then the types got looser."""
    pytest.importorskip("mypy")
    file = Path(__file__).with_name("typing_of_servers.py")
    root = file.parents[2]

    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(root / ".mypy_cache"), str(file)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


async def test_stopping_is_for_servers_that_are_there() -> None:
    async with Scope():
        ref = await up(Counter)
        await stop(ref)
        with pytest.raises(ServerDownError):
            await ref.stop()
