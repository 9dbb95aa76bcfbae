"""What systemd is told, over a real datagram socket."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from backplane.supervisor._systemd import notify, ping_watchdog, watchdog_interval


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end of NOTIFY_SOCKET."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield receiver


def forget_all(manager: socket.socket) -> None:
    """Take all messages that have arrived."""
    try:
        while True:
            manager.recv(4096)
    except BlockingIOError:
        pass


def test_a_message_is_one_datagram(manager: socket.socket) -> None:
    assert notify("READY=1\nSTATUS=Grüße")

    assert manager.recv(4096) == "READY=1\nSTATUS=Grüße".encode()


def test_a_name_with_an_at_sign_is_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"backplane-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")

        assert notify("READY=1")
        assert receiver.recv(4096) == b"READY=1"


@pytest.mark.parametrize("address", [None, ""], ids=["unset", "empty"])
def test_nobody_is_told_where_nobody_asks(
    address: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)

    assert not notify("READY=1")
    assert not caplog.records


@pytest.mark.parametrize(
    "address",
    ["/nowhere/at/all", "@backplane-nobody", "vsock:2:1234", "relative", "/" + 200 * "x"],
)
def test_a_socket_that_cannot_be_reached_is_logged(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)

    assert not notify("READY=1")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "READY=1" in record.getMessage()
    assert address in record.getMessage()


def test_a_message_to_a_full_socket_is_dropped_at_once(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    sent = 0
    while notify("WATCHDOG=1"):
        sent += 1

    assert sent
    assert len(caplog.records) == 1
    for _ in range(sent):
        assert manager.recv(4096) == b"WATCHDOG=1"
    assert notify("READY=1")


@pytest.mark.parametrize(
    ("allowed", "process", "interval"),
    [
        (None, None, None),
        ("", None, None),
        ("3000000", None, 1.5),
        ("3000000", "", 1.5),
        ("3000000", "own", 1.5),
        ("3000000", "1", None),
        (None, "own", None),
    ],
)
def test_a_ping_is_due_after_half_the_time_that_the_watchdog_allows(
    allowed: str | None,
    process: str | None,
    interval: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if allowed is not None:
        monkeypatch.setenv("WATCHDOG_USEC", allowed)
    if process is not None:
        monkeypatch.setenv("WATCHDOG_PID", process.replace("own", str(os.getpid())))

    assert watchdog_interval() == interval


@pytest.mark.parametrize("allowed", ["0", "-1", "soon", "1.5"])
def test_a_watchdog_that_makes_no_sense_is_logged(
    allowed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", allowed)

    assert watchdog_interval() is None
    assert allowed in caplog.text


@pytest.mark.anyio
async def test_the_watchdog_is_pinged_again_and_again(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    began = time.monotonic()

    async with anyio.create_task_group() as tg:
        tg.start_soon(ping_watchdog)
        for _ in range(4):
            assert await anyio.to_thread.run_sync(manager.recv, 4096) == b"WATCHDOG=1"
        tg.cancel_scope.cancel()

    assert time.monotonic() - began > 0.05


@pytest.mark.anyio
async def test_a_blocked_loop_does_not_ping(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")

    async with anyio.create_task_group() as tg:
        tg.start_soon(ping_watchdog)
        await anyio.to_thread.run_sync(manager.recv, 4096)
        manager.setblocking(False)
        forget_all(manager)
        time.sleep(0.1)  # noqa: ASYNC251 - that is the point
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
        tg.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True)
async def test_without_a_watchdog_the_pinger_just_waits(manager: socket.socket) -> None:
    manager.setblocking(False)

    with anyio.move_on_after(3600) as scope:
        await ping_watchdog()

    assert scope.cancelled_caught
    with pytest.raises(BlockingIOError):
        manager.recv(4096)
