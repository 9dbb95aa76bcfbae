"""What errors and reports say: short, without secrets, and whatever a value's own repr does."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from backplane.otp import (
    NORMAL,
    CallError,
    Exit,
    From,
    GenServer,
    InitError,
    NoProcessError,
    Registry,
    Scope,
    ServerDownError,
    ServerRef,
    Stop,
    call,
    cast,
    current_process,
    on_call,
    send,
    spawn,
    start,
    system,
    whereis,
)
from backplane.otp._brief import brief

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


class Relay(GenServer):
    """Asks the next one; the last fails."""

    def init(self, beyond: ServerRef[Relay] | None) -> None:
        self._beyond = beyond

    async def handle_call(self, message: Any, from_: From) -> Any:
        if self._beyond is None:
            raise ValueError("at the bottom")
        return await call(self._beyond, message)


async def chain(length: int) -> list[ServerRef[Relay]]:
    """Servers, each of which calls the one before."""
    refs: list[ServerRef[Relay]] = []
    for _ in range(length):
        refs.append(await start(Relay, refs[-1] if refs else None))
    return refs


@virtual
@pytest.mark.parametrize("length", [1, 2, 3, 100])
async def test_a_failure_is_told_once_however_many_servers_it_goes_through(
    length: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with Scope():
        refs = await chain(length)
        with pytest.raises(ServerDownError) as failure:
            await call(refs[-1], "x")

    text = str(failure.value)
    assert text.startswith(f"{refs[-1].pid!r} ended without an answer: ")
    assert text.count("ValueError('at the bottom')") == 1
    if length > 1:
        assert f"{refs[0].pid!r} ended without an answer" in text
    if length > 2:
        assert f"(and so did {length - 2} more, one after another)" in text
    assert len(text) < 300
    assert repr(failure.value) == f"ServerDownError({text!r})"
    longest = max(len(record.getMessage()) for record in caplog.records)
    assert longest < 1000


def test_a_failed_start_that_follows_from_another_is_told_with_the_first_reason() -> None:
    error = InitError("Outer", InitError("Inner", KeyError("port")))

    assert str(error) == "Outer did not start: Inner did not start: KeyError('port')"


class Unspeakable(Exception):
    """Cannot be told of."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


class Raises(GenServer):
    def handle_call(self, message: Any, from_: From) -> Any:
        raise message

    def handle_cast(self, message: Any) -> Any:
        return message


@virtual
async def test_a_failure_that_cannot_be_told_is_reported_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Scope():
        ref: ServerRef[Raises] = await start(Raises)
        with pytest.raises(ServerDownError) as failure:
            await call(ref, Unspeakable())
        stopped: ServerRef[Raises] = await start(Raises)
        cast(stopped, Stop(Unspeakable()))
        await stopped.wait()
        odd: ServerRef[Raises] = await start(Raises)
        cast(odd, Unspeakable())
        await odd.wait()

    reports = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert [
        f"server {each.pid!r} ended" in report.getMessage()
        for each, report in zip([ref, stopped, odd], reports, strict=True)
    ] == [True] * 3
    assert "Unspeakable" in str(failure.value)
    assert repr(ref.pid) == f"<Pid {ref.pid.id.serial} Raises (ended)>"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda it: Exit(it), "exit: <Unspeakable"),
        (lambda it: NoProcessError(it, "find it"), "cannot find it: no process <Unspeakable"),
        (lambda it: CallError(it, it), "<Unspeakable instance at"),
        (lambda it: ServerDownError(it, it, it), "<Unspeakable"),
        (lambda it: InitError("It", it), "It did not start: <Unspeakable"),
    ],
)
def test_no_error_chokes_on_what_it_tells_of(make: Any, told: str) -> None:
    error = make(Unspeakable())

    assert told in str(error)
    assert "Unspeakable" in repr(error)


class Sick:
    """Has the name of a type that is told specially, and is none."""

    def __len__(self) -> int:
        raise RuntimeError


Sick.__name__ = "list"


def test_what_is_told_is_short_and_never_fails() -> None:
    assert brief("a" * 10**6).startswith("'aaa")
    assert len(brief("a" * 10**6)) < 200
    assert len(brief([["b" * 1000] * 1000] * 1000)) < 400
    assert brief(5) == "5"
    assert brief({"a": [1, 2]}) == "{'a': [1, 2]}"
    assert brief(Sick()) == "<list whose repr raises RuntimeError>"


class Vault(GenServer):
    def init(self, code: str) -> None:
        self._code = code

    @on_call
    def login(self, user: str, password: str) -> bool:
        raise LookupError("no database")

    def handle_call(self, message: Any, from_: From) -> Any:
        raise LookupError("no database")

    def handle_cast(self, message: Any) -> None:
        raise LookupError("no database")


@virtual
async def test_reports_of_a_crash_tell_the_kind_of_the_last_message_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def client() -> None:
        vault = await start(Vault, "4711")
        with pytest.raises(ServerDownError) as failure:
            await vault.call(Vault.login, "ann", password="hunter2")
        assert "hunter2" not in f"{failure.value} {failure.value!r}"

    async with Scope():
        pid = spawn(client)
        await pid.wait()
        asked: ServerRef[Vault] = await start(Vault, "4711")
        with pytest.raises(ServerDownError):
            await call(asked, ("login", "hunter2"))
        told: ServerRef[Vault] = await start(Vault, "4711")
        cast(told, {"password": "hunter2"})
        await told.wait()

    said = [record.getMessage().splitlines()[1] for record in caplog.records]
    assert said == [
        f"last message: call from <Pid {pid.id.serial} client>: Vault.login(...)",
        "last message: call from outside: <tuple>",
        "last message: cast: <dict>",
    ]
    assert "hunter2" not in caplog.text
    assert "4711" not in caplog.text


@virtual
async def test_what_format_status_lets_out_is_cut_short(caplog: pytest.LogCaptureFixture) -> None:
    class Open(Vault):
        def format_status(self, status: dict[str, Any]) -> dict[str, Any]:
            return status

    async with Scope():
        ref: ServerRef[Open] = await start(Open, "4711" * 10_000)
        cast(ref, "the message" * 10_000)
        await ref.wait()

    assert "the message" in caplog.text
    assert "4711" in caplog.text
    assert len(caplog.records[0].getMessage()) < 1500


@virtual
async def test_names_and_addresses_of_any_kind_can_be_told() -> None:
    with Registry[Any, Any]() as registry:
        async with Scope():
            it = registry.via(Unspeakable)
            with pytest.raises(NoProcessError):
                send(it, 1)
            with pytest.raises(TypeError, match="a process is a Pid"):
                await system.get_state(Unspeakable())  # type: ignore[arg-type]
            assert whereis("x") is None


@virtual
async def test_the_name_of_a_process_is_cut_short() -> None:
    async with Scope() as scope:

        async def tell() -> None:
            assert len(repr(current_process().pid)) < 150

        assert (await scope.spawn(tell, label="n" * 10_000).wait()) is NORMAL
