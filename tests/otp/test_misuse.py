"""Mistakes in servers and in how they are used: each is told clearly, and nothing half done."""

from __future__ import annotations

import copy
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from backplane.otp import (
    NO_REPLY,
    NORMAL,
    BadReturnError,
    Exit,
    From,
    GenServer,
    Groups,
    NoRegistryError,
    NoReply,
    NotServedError,
    Overflow,
    Ref,
    Registry,
    Reply,
    ReplyError,
    Scope,
    ServerDownError,
    ServerRef,
    Stop,
    alias,
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
    start,
    start_soon,
    stop,
    system,
)

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


class Puppet(GenServer):
    def handle_call(self, message: Any, from_: From) -> Any:
        return message() if callable(message) and not isinstance(message, type) else message

    def handle_cast(self, message: Any) -> Any:
        return message() if callable(message) and not isinstance(message, type) else message


# -- what callbacks return ---------------------------------------------------------------------


@virtual
@pytest.mark.parametrize("kind", [Stop, NoReply, Reply])
async def test_a_class_is_returned_where_an_instance_is_meant(kind: Any) -> None:
    async with Scope():
        reasons = []
        for how in call, cast:
            ref: ServerRef[Puppet] = await start(Puppet)
            if how is call:
                with pytest.raises(ServerDownError):
                    await call(ref, kind)
            else:
                cast(ref, kind)
            reasons.append(await ref.wait())

    name = kind.__name__
    assert [type(each) for each in reasons] == [BadReturnError] * 2
    assert [str(each) for each in reasons] == [
        f"{callback} returned the class {name}: write {name}(...)"
        for callback in ("handle_call", "handle_cast")
    ]


@virtual
async def test_any_other_class_and_any_generator_made_elsewhere_is_an_answer() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async with Scope():
        ref: ServerRef[Puppet] = await start(Puppet)

        assert await call(ref, int) is int
        assert list(await call(ref, numbers)) == [1]


class Generating(GenServer):
    @on_call
    def method(self) -> Iterator[int]:
        yield 1

    @on_call
    async def async_method(self) -> AsyncIterator[int]:
        yield 1

    def handle_call(self, message: Any, from_: From) -> Any:
        yield 1

    def handle_cast(self, message: Any) -> Any:
        yield 1


@virtual
async def test_a_callback_must_not_yield() -> None:
    reasons = []
    async with Scope():
        for ask in (
            lambda ref: ref.call(Generating.method),
            lambda ref: ref.call(Generating.async_method),
            lambda ref: call(ref, 1),
        ):
            ref: ServerRef[Generating] = await start(Generating)
            with pytest.raises(ServerDownError) as failure:
                await ask(ref)
            reasons.append(str(failure.value.reason))
        told: ServerRef[Generating] = await start(Generating)
        cast(told, 1)
        reasons.append(str(await told.wait()))

    assert reasons == [
        f"{name} is a generator function: it must not yield"
        for name in ("method", "async_method", "handle_call", "handle_cast")
    ]


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan, "5"])
@pytest.mark.parametrize("make", [lambda s: Reply(1, timeout=s), lambda s: NoReply(timeout=s)])
def test_an_idle_timeout_is_a_finite_number_of_seconds(make: Any, seconds: Any) -> None:
    with pytest.raises(ValueError, match="a finite number of seconds, or None for ever"):
        make(seconds)


def test_none_is_no_reason() -> None:
    for make in Exit, Stop:
        with pytest.raises(ValueError, match="None is no reason to end"):
            make(None)


@virtual
async def test_nobody_ends_for_no_reason() -> None:
    async with Scope():
        ref: ServerRef[Puppet] = await start(Puppet)
        with pytest.raises(ValueError, match="None is no reason"):
            ref.pid.exit(None)
        with pytest.raises(ValueError, match="None is no reason"):
            await stop(ref, None)

        assert await call(ref, 1) == 1


def test_one_that_stops_goes_on_with_nothing() -> None:
    for more in {"then": 1}, {"timeout": 5}:
        with pytest.raises(ValueError, match="goes on with nothing"):
            reply_and(1, stop=NORMAL, **more)


# -- ReplyError --------------------------------------------------------------------------------


@pytest.mark.parametrize("nonsense", ["text", None, ValueError, KeyboardInterrupt(), SystemExit(1)])
def test_a_caller_is_told_an_exception(nonsense: Any) -> None:
    with pytest.raises(TypeError, match="takes an exception such as"):
        ReplyError(nonsense)


@virtual
async def test_an_exception_that_many_callers_get_does_not_grow() -> None:
    shared = LookupError("no such key")

    def refuse() -> None:
        raise ReplyError(shared)

    lengths = []
    async with Scope():
        ref: ServerRef[Puppet] = await start(Puppet)
        for _ in range(5):
            with pytest.raises(LookupError) as failure:
                await call(ref, refuse)
            assert failure.value is shared
            lengths.append(len(failure.traceback))

    assert len(set(lengths)) == 1
    assert str(ReplyError(shared)) == "LookupError('no such key')"


# -- void requests -----------------------------------------------------------------------------


class Idle(GenServer):
    """Ends when nothing has come for 5 seconds."""

    def init(self) -> NoReply:
        return NoReply(timeout=5)

    def handle_timeout(self) -> Stop:
        return Stop()

    def handle_call(self, message: Any, from_: From) -> Any:
        return NO_REPLY


@virtual
@pytest.mark.parametrize("options", [{}, {"capacity": 1000}], ids=["unbounded", "bounded"])
async def test_a_request_that_nobody_waits_for_is_as_if_it_had_never_come(options: Any) -> None:
    async with Scope():
        ref: ServerRef[Idle] = await start(Idle, **options)
        seen: list[Any] = []
        await system.trace(ref, lambda way, message: seen.append(message))
        await system.statistics(ref, on=True)
        await anyio.sleep(3)
        for _ in range(250):
            send_request(ref, "forget it").abandon()
        await anyio.lowlevel.checkpoint()

        assert await ref.wait() is not None
        assert anyio.current_time() == 5
    assert [type(each).__name__ for each in seen] == ["_Timeout"]


# -- names of methods --------------------------------------------------------------------------


class Notes(GenServer):
    """Has names of its own for what the base could have had."""

    def init(self) -> None:
        self._statistics = self._traces = self._notes = self.log = self.kind = 0

    @on_call
    def note(self, text: str) -> str:
        return text

    @on_cast
    def trace(self) -> None:
        pass

    def unmarked(self) -> None:
        pass


class Others(GenServer):
    @on_call
    def find(self) -> int:
        return 1


@virtual
async def test_a_server_may_call_its_methods_and_attributes_as_it_likes() -> None:
    async with Scope():
        ref: ServerRef[Notes] = await start(Notes)
        await system.trace(ref, lambda way, message: None)
        await system.statistics(ref, on=True)

        assert await ref.call(Notes.note, "text") == "text"
        state = await system.get_state(ref)
        assert set(state) == {"_statistics", "_traces", "_notes", "log", "kind"}


@virtual
@pytest.mark.parametrize(
    ("method", "why"),
    [
        (Notes.unmarked, "Notes.unmarked cannot be called here: it is not marked with @on_call"),
        (Notes.trace, "Notes.trace cannot be called here: it is marked with @on_cast"),
        (Others.find, "Others.find cannot be called here: it is no method of Notes, nor of one"),
        ("note", "'note' cannot be called here: it is not marked with @on_call"),
    ],
)
async def test_an_error_says_why_a_method_is_not_served(method: Any, why: str) -> None:
    async with Scope():
        ref: ServerRef[Notes] = await start(Notes)
        with pytest.raises(NotServedError) as failure:
            await ref.call(method)

    assert str(failure.value).startswith(why)


# -- starting ----------------------------------------------------------------------------------


@virtual
@pytest.mark.parametrize(
    ("kind", "options", "error", "text"),
    [
        (5, {}, TypeError, "a subclass of GenServer, not of 5"),
        (int, {}, TypeError, "a subclass of GenServer, not of"),
        (Puppet(), {}, TypeError, "a subclass of GenServer, not of"),
        (Puppet, {"name": 5}, TypeError, "a server's name is a str, not 5"),
        (Puppet, {"capacity": 1.5}, TypeError, "a whole number of messages, not 1.5"),
        (Puppet, {"capacity": 0}, ValueError, "one message or more, not 0"),
    ],
)
async def test_what_cannot_be_a_server_is_refused_before_anything_starts(
    kind: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    async with Scope() as scope:
        with pytest.raises(error, match=text):
            await start(kind, **options)
        with pytest.raises(error, match=text):
            start_soon(kind, **options)
        with pytest.raises(error, match=text):
            child_spec(kind, **options)
        assert scope.processes == []


def test_a_specification_of_a_process_checks_its_capacity_too() -> None:
    with pytest.raises(TypeError, match="a whole number"):
        process_spec("it", anyio.sleep_forever, capacity=2.5)  # type: ignore[arg-type]


class Eager(GenServer):
    def init(self, first: int, *, timeout: float, name: str, kwargs: int = 0) -> None:
        self.had = (first, timeout, name, kwargs)

    def handle_call(self, message: Any, from_: From) -> Any:
        return self.had


@virtual
async def test_parameters_of_init_that_are_called_as_options_are_given_by_kwargs() -> None:
    init = {"timeout": 3, "name": "x", "kwargs": 7}
    async with Scope():
        for make in start, start_monitor_of:
            ref = await make(Eager, 1, kwargs=init, timeout=60, overflow=Overflow.RAISE)
            assert await call(ref, 0) == (1, 3, "x", 7)
        startup = start_soon(Eager, 1, kwargs=init)
        assert await call(await startup.wait(), 0) == (1, 3, "x", 7)


async def start_monitor_of(kind: Any, *args: Any, **options: Any) -> Any:
    from backplane.otp import spawn, start_monitor

    refs: list[Any] = []

    async def starter() -> None:
        refs.append((await start_monitor(kind, *args, **options))[0])

    await spawn(starter).wait()
    return refs[0]


@virtual
async def test_names_need_a_registry_for_several_calls_as_for_one() -> None:
    async with Scope():
        ref: ServerRef[Puppet] = await start(Puppet)
        with pytest.raises(NoRegistryError):
            await multi_call((ref, "nobody"), "x")

        assert await call(ref, 1) == 1
        with Registry():
            assert await multi_call((ref, "nobody"), "x") == ([(ref, "x")], ["nobody"])


# -- copies ------------------------------------------------------------------------------------


@virtual
async def test_a_copy_of_a_handle_is_that_handle() -> None:
    copies: list[bool] = []

    async def me() -> None:
        own = alias()
        registry, groups = Registry[Any, Any](), Groups()
        ref = ServerRef(current_process().pid, Puppet)
        request = send_request(await start(Idle), 1)
        for each in own, registry, registry.via("x"), groups, ref, ref.pid, Ref(), request:
            copies.append(copy.copy(each) is each)
            copies.append(copy.deepcopy({"in": [each]})["in"][0] is each)

    async with Scope() as scope:
        await scope.spawn(me).wait()

    assert copies == [True] * 16
