"""What mypy has to make of typed servers. Nobody runs this.

Each ignored error has to be one: ``warn_unused_ignores`` fails otherwise, and so
tells that the types have become looser.
"""

from __future__ import annotations

from typing import Any, assert_type

from backplane.otp import (
    NO_REPLY,
    NORMAL,
    Down,
    Exited,
    From,
    GenServer,
    NoReply,
    Pid,
    Requests,
    Scope,
    ServerRef,
    Stop,
    call,
    cast,
    child_spec,
    current_process,
    multi_call,
    on_call,
    on_cast,
    process_spec,
    reply_and,
    send_request,
    spawn,
    spawn_monitor,
    start,
    system,
)
from backplane.otp._server import Server
from backplane.supervisor import BRUTAL_KILL, Restart


class Counter(GenServer):
    """A server with methods of all kinds."""

    def init(self, n: int) -> None:
        """Begin."""
        self.n = n

    @on_call
    def add(self, k: int, *, times: int = 1) -> int:
        """Answer with a number."""
        self.n += k * times
        return self.n

    @on_call
    async def name(self) -> str:
        """Answer with a text, some time."""
        return "counter"

    @on_call
    def clear(self) -> None:
        """Answer with nothing."""
        self.n = 0

    @on_cast
    def reset(self, n: int = 0) -> None:
        """Answer nobody."""
        self.n = n


class Louder(Counter):
    """Inherits them, and adds one."""

    @on_call
    def bark(self) -> str:
        """Answer with noise."""
        return "!"


class Other(GenServer):
    """Has another."""

    @on_call
    def find(self, key: str) -> bytes | None:
        """Answer with one of two."""
        return key.encode() or None


def marked() -> None:
    """A mark leaves the type of what it marks."""
    counter = Counter()
    assert_type(counter.add(1), int)
    counter.add("1")  # type: ignore[arg-type]


async def starting() -> None:
    """Starting tells which server it is."""
    assert_type(await start(Counter, 5), ServerRef[Counter])
    await start(int)  # type: ignore[type-var]
    await start(Counter, timeout="soon")  # type: ignore[arg-type]


async def calling(ref: ServerRef[Counter]) -> None:
    """Results and arguments are those of the method, awaited if it is async."""
    assert_type(await ref.call(Counter.add, 1), int)
    assert_type(await ref.call(Counter.add, k=1, times=2), int)
    assert_type(await ref.call(Counter.name), str)
    assert_type(await ref.within(5).call(Counter.name), str)
    assert_type(ref.within(None), ServerRef[Counter])
    await ref.call(Counter.clear)
    ref.cast(Counter.reset)
    ref.cast(Counter.reset, n=1)


async def mistakes(ref: ServerRef[Counter], other: ServerRef[Other]) -> None:
    """What an editor underlines."""
    await ref.call(Counter.add)  # type: ignore[call-overload]
    await ref.call(Counter.add, "1")  # type: ignore[call-overload]
    await ref.call(Counter.add, 1, 2)  # type: ignore[call-overload]
    await ref.call(Counter.add, 1, often=2)  # type: ignore[call-arg,arg-type]
    await ref.call(Other.find, "key")  # type: ignore[call-overload]
    await other.call(Counter.add, 1)  # type: ignore[call-overload]
    await ref.call("add", 1)  # type: ignore[call-overload]
    ref.cast(Counter.reset, "0")  # type: ignore[arg-type]
    ref.cast(Counter.reset, m=0)  # type: ignore[call-arg]
    ref.cast(Other.find, "key")  # type: ignore[arg-type]
    ref.cast(Counter.add, 1)  # type: ignore[arg-type]
    ref.cast(Counter.name)  # type: ignore[arg-type]
    assert_type(await other.call(Other.find, "key"), bytes | None)


async def inheriting(ref: ServerRef[Louder]) -> None:
    """A server has the methods of its bases."""
    assert_type(await ref.call(Counter.add, 1), int)
    assert_type(await ref.call(Louder.add, 1), int)
    base: ServerRef[Counter] = ref
    assert_type(await base.call(Counter.name), str)
    await ServerRef("name", Counter).call(Louder.bark)  # type: ignore[call-overload]


class Replying(GenServer):
    """Answers as marked methods may, whatever their types."""

    @on_call
    async def later(self) -> float:
        """Answer some time."""
        return NO_REPLY

    @on_call
    def then(self, key: str) -> str:
        """Answer, and go on."""
        return reply_and(key, then="load")

    @on_call
    def last(self, key: str) -> str:
        """Answer, and end."""
        return reply_and(key, stop=NORMAL)

    @on_call
    def wrong(self, key: str) -> str:
        """Answer with a wrong type."""
        return reply_and(5, then=key)  # type: ignore[return-value]

    @on_cast
    async def quiet(self) -> NoReply:
        """Answer nobody, and wait."""
        return NoReply(timeout=5)

    @on_cast
    def end(self) -> Stop | None:
        """Answer nobody, and end."""
        return Stop()


async def answering(ref: ServerRef[Replying]) -> None:
    """The caller sees the answer alone."""
    assert_type(await ref.call(Replying.later), float)
    assert_type(await ref.call(Replying.then, "x"), str)
    ref.cast(Replying.quiet)
    ref.cast(Replying.end)


async def receiving(ref: ServerRef[Counter]) -> None:
    """What is received is of the type that was asked for."""
    me = current_process()
    assert_type(await me.receive(Down), Down)
    assert_type(await me.receive(Exited, timeout=1), Exited)
    assert_type(await me.receive((Down, Exited)), Any)
    assert_type(await me.receive(), Any)
    assert_type(await me.receive(lambda message: message == 1), Any)


async def work(number: int, text: str = "") -> None:
    """Something to spawn."""


async def spawning(scope: Scope) -> None:
    """What a process is spawned with is checked, and so is a specification."""
    spawn(work, 1)
    spawn(work, 1, "text", link=True)
    scope.spawn(work, 1, label="x")
    spawn_monitor(work, 1)
    process_spec("id", work, 1, restart=Restart.TRANSIENT)
    child_spec(Counter, 1, restart=Restart.TEMPORARY, shutdown=BRUTAL_KILL)
    spawn(work, "text")  # type: ignore[arg-type]
    spawn(work)  # type: ignore[arg-type]
    scope.spawn(work, 1, 2)  # type: ignore[arg-type]
    scope.spawn(work, 1, lable="x")  # type: ignore[call-arg]
    process_spec("id", work, "text")  # type: ignore[arg-type]
    child_spec(Counter, 1, restrat=1)  # type: ignore[call-arg]
    child_spec(Counter, 1, restart=1)  # type: ignore[arg-type]


async def untyped(ref: ServerRef[Counter], pid: Pid) -> None:
    """The other style takes any server and any message."""
    servers: list[Server] = [ref, pid, "name"]
    for server in servers:
        assert_type(await call(server, "text", timeout=None), Any)
        cast(server, "text")
    await call(5, "text")  # type: ignore[arg-type]
    cast(None, "text")  # type: ignore[arg-type]
    assert_type(send_request(ref, "text"), From)
    assert_type(await Requests().receive(), tuple[Any, Any])
    assert_type(await multi_call([ref, pid], "text"), tuple[list[tuple[Server, Any]], list[Server]])
    counters: list[ServerRef[Counter]] = [ref]
    await multi_call(counters, "text")


async def asking(ref: ServerRef[Counter]) -> None:
    """What servers tell of themselves."""
    assert_type(await system.get_status(ref), system.Status)
    assert_type(await system.statistics(ref, on=True), system.Statistics | None)
    await system.trace(ref, lambda way, message: None)
    await system.trace(ref, lambda message: None)  # type: ignore[arg-type,misc]
