"""What a caller hears of what goes wrong in a server: on another node the same as on this one."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest

from backplane import Device
from backplane.bridge import RemoteError
from backplane.otp import (
    NOPROC,
    NORMAL,
    SHUTDOWN,
    CallTimeoutError,
    DeadlineError,
    Down,
    Exit,
    From,
    GenServer,
    MailboxFullError,
    Pid,
    ReplyError,
    ServerDownError,
    Stop,
    Stopped,
    StrayError,
    call,
    current_process,
    start,
)
from backplane.otp._far import FULL
from backplane.otp._wire import PID

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from otp.cluster_world import Side, deaf, sides, until
else:
    from .cluster_world import Side, deaf, sides, until

pytestmark = pytest.mark.anyio
in_virtual_time = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


class Foreign(BaseException):
    """As those that test frameworks raise."""


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class Odd(Exception):
    pass


Odd.__module__ = "\ud800"


async def cancellation() -> BaseException:
    """One that is over."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep(1)
        except BaseException as caught:
            return caught
    raise AssertionError


class Failing(GenServer):
    """Does in a call what it is told."""

    def init(self, silent: Pid) -> None:
        self.silent = silent

    async def handle_call(self, message: Any, from_: From) -> Any:
        match message:
            case ["answer", number]:
                return number
            case ["stray"]:
                raise await cancellation()
            case ["nested", seconds, outer]:
                with anyio.fail_after(outer):
                    await call(self.silent, "nobody answers", seconds)
            case ["nested and told", seconds]:
                try:
                    await call(self.silent, "nobody answers", seconds)
                except CallTimeoutError as error:
                    raise ReplyError(error) from None
            case _:
                result = WAYS[message[0]](self)
                if isinstance(result, BaseException):
                    raise result
                return result
        raise AssertionError(message)


def down(server: Failing, reason: Any) -> ServerDownError:
    return ServerDownError(server.silent, "a request", reason, begun=True)


WAYS: dict[str, Callable[[Failing], Any]] = {
    "error": lambda _: ValueError("on purpose"),
    "error without a text": lambda _: KeyError(),
    "mute": lambda _: Mute(),
    "odd": lambda _: Odd("of no module"),
    "group": lambda _: ExceptionGroup("two", [ValueError(1), KeyError(2)]),
    "base group": lambda _: BaseExceptionGroup("two", [ValueError(1), Foreign(2)]),
    "group of an exit": lambda _: ExceptionGroup("one", [Exit("boom")]),
    "group of a refusal": lambda _: ExceptionGroup("one", [ReplyError(ValueError("no"))]),
    "foreign": lambda _: Foreign("text"),
    "generator exit": lambda _: GeneratorExit(),
    "timeout": lambda _: TimeoutError("of something else"),
    "deadline of another call": lambda it: DeadlineError(it.silent, "a request", 1),
    "stray made by hand": lambda _: StrayError(ValueError("x")),
    "down": lambda it: down(it, "boom"),
    "exit normal": lambda _: Exit(NORMAL),
    "exit shutdown": lambda _: Exit(SHUTDOWN),
    "exit detail": lambda _: Exit(Stopped(["detail", 1])),
    "exit value": lambda _: Exit({"a": ["value"]}),
    "exit noproc": lambda _: Exit(NOPROC),
    "stop": lambda _: Stop(SHUTDOWN, reply="bye"),
    "stop without a reply": lambda _: Stop("boom"),
    "refuse": lambda _: ReplyError(ValueError("not that")),
    "refuse mute": lambda _: ReplyError(Mute()),
    "refuse odd": lambda _: ReplyError(Odd("text")),
    "refuse group": lambda _: ReplyError(ExceptionGroup("two", [ValueError(1), KeyError(2)])),
    "refuse stray": lambda _: ReplyError(StrayError(ValueError("x"))),
    "refuse timeout": lambda _: ReplyError(TimeoutError("of something else")),
    "refuse call timeout": lambda it: ReplyError(CallTimeoutError(it.silent, "a request", 2)),
    "refuse deadline": lambda it: ReplyError(DeadlineError(it.silent, "a request", 2)),
    "refuse down": lambda it: ReplyError(down(it, "boom")),
    "refuse full": lambda it: ReplyError(MailboxFullError(it.silent, 7, "a message")),
}


def told(error: Any) -> Any:
    """What an error says, be it of this node or of another."""
    if isinstance(error, RemoteError):
        return error.type_name, anonymous(error.text)
    if not isinstance(error, BaseException):
        return error
    kind = type(error)
    try:
        text = str(error)
    except ValueError:
        text = "(it cannot be shown)"
    name = f"{kind.__module__}.{kind.__qualname__}"
    return name.encode("utf-8", "backslashreplace").decode(), anonymous(text)


def anonymous(text: str) -> str:
    """The same without the addresses of objects."""
    return re.sub(r"\b(0x)?[0-9a-f]{12}\b", "...", text)


async def outcome(pid: Pid, message: Any, seconds: float | None) -> list[Any]:
    """What a caller gets of a call, and what one who looks on hears next."""
    me = current_process()
    ref = me.monitor(pid)
    try:
        got: list[Any] = ["answer", await call(pid, message, seconds)]
    except ServerDownError as error:
        if error.target == pid:
            got = ["down", told(error.reason), error.begun]
        else:
            got = ["error", told(error)]
    except DeadlineError as error:
        got = ["error", told(error)]
    except CallTimeoutError as error:
        got = ["late", error.seconds] if error.target == pid else ["error", told(error)]
    except Exception as error:
        got = ["error", told(error)]
    if got[0] == "down" or message[0].startswith("stop"):
        ended = await me.receive(Down, timeout=20)
        assert ended.ref is ref
        return [*got, "then down", told(ended.reason)]
    me.demonitor(ref)
    return [*got, "then alive", await call(pid, ["answer", 1], 5)]


async def both(message: Any, seconds: float | None = 5) -> tuple[list[Any], list[Any]]:
    """The outcome here, and the one of the same server elsewhere."""
    async with sides("a", "b") as (a, b):
        silent = b.scope.spawn(deaf)
        local = await b.run(outcome, await failing(b, silent), message, seconds)
        pid = await failing(b, silent)
        b.registry.register("it", None, pid)
        far = await a.cluster.await_name("it", 20)
        remote = await a.run(outcome, far, message, seconds)
        await until(lambda: not silent._process.calls)
        return local, remote


async def failing(side: Side, silent: Pid) -> Pid:
    return (await start(Failing, silent, scope=side.scope)).pid


@in_virtual_time
@pytest.mark.parametrize("way", [*WAYS, "stray"])
async def test_a_caller_elsewhere_hears_what_one_here_does(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "backplane.otp")

    local, remote = await both([way])

    assert remote == local


@in_virtual_time
@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        (["nested", 1, None], 5),
        (["nested", 9, None], 5),
        (["nested", 9, 2], 5),
        (["nested", None, None], 5),
        (["nested", 1, None], None),
        (["nested and told", 1], 5),
        (["nested and told", 1], None),
    ],
    ids=str,
)
async def test_so_it_is_where_the_server_waits_for_another(
    message: Any, seconds: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "backplane.otp")

    local, remote = await both(message, seconds)

    assert remote == local


class Refusing:
    """A port that refuses all requests in a way that no cluster does."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def tell(self, message: Any) -> None:
        raise AssertionError

    def call(self, request: Any) -> None:
        request.fail(self._error)


async def test_an_impossible_refusal_is_the_answer() -> None:
    async with sides("a", "b") as (a, b):
        device = Device()
        b.node.serve(device, Refusing(RemoteError(FULL, "not a number")))
        packed = b"\1" + b.node.pack_line(device.line())
        pid: Pid = a.node.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(PID, packed)))

        with pytest.raises(RemoteError, match="not a number"):
            await call(pid, "x")
