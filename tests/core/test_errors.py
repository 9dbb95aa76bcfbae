"""The exceptions of the core: what they say, and that they travel."""

from __future__ import annotations

import copy
import pickle
import traceback

import anyio
import pytest

from backplane import (
    CascadeCrash,
    Cascaded,
    Crash,
    Device,
    DeviceDownError,
    DeviceID,
    Failed,
    Killed,
    LinkDownError,
    LinkError,
    PowerOffCrash,
)

ID = DeviceID(7)
ORIGIN = DeviceID(8)
ERRORS: list[tuple[Exception, str]] = [
    (LinkError(ID, "link"), "cannot link: <DeviceID 7> has already disconnected"),
    (DeviceDownError(ID, "receive"), "cannot receive: <DeviceID 7> has already disconnected"),
    (LinkDownError(ID, "link"), "cannot link: <DeviceID 7> has already disconnected"),
    (PowerOffCrash(None), "shut down on request"),
    (PowerOffCrash(ID), "shut down on request of <DeviceID 7>"),
    (CascadeCrash(ID, Killed()), "<DeviceID 7> ended with Killed()"),
    (
        CascadeCrash(ID, Cascaded(ORIGIN, Killed())),
        "<DeviceID 7> ended with Cascaded(<DeviceID 8>, Killed())",
    ),
]

each = pytest.mark.parametrize(("error", "text"), ERRORS, ids=[repr(e) for e, _ in ERRORS])


@each
def test_an_error_says_what_was_tried_on_whom(error: Exception, text: str) -> None:
    assert str(error) == text


@each
def test_an_error_keeps_its_facts_when_it_is_pickled(error: Exception, text: str) -> None:
    copied = pickle.loads(pickle.dumps(error))

    assert type(copied) is type(error)
    assert vars(copied) == vars(error)
    assert str(copied) == text


@each
def test_an_error_keeps_its_facts_when_it_is_copied(error: Exception, text: str) -> None:
    copied = copy.deepcopy(error)

    assert type(copied) is type(error)
    assert vars(copied) == vars(error)
    assert str(copied) == text


@each
def test_a_traceback_shows_an_error_by_the_name_that_is_imported(
    error: Exception, text: str
) -> None:
    shown = traceback.format_exception_only(error)

    assert shown == [f"backplane.{type(error).__name__}: {text}\n"]


def test_both_sides_of_a_failed_link_are_link_errors() -> None:
    assert issubclass(DeviceDownError, LinkError)
    assert issubclass(LinkDownError, LinkError)
    assert not issubclass(DeviceDownError, LinkDownError)


def test_what_ends_work_is_a_crash_and_no_link_error() -> None:
    assert issubclass(PowerOffCrash, Crash)
    assert issubclass(CascadeCrash, Crash)
    assert not issubclass(Crash, LinkError)


def test_the_root_of_a_crash_is_the_fault_itself_when_nobody_stood_between() -> None:
    fault = Failed(ValueError())

    assert CascadeCrash(ID, fault).root is fault


def test_the_root_of_a_crash_is_the_first_cause_of_a_cascade() -> None:
    fault = Failed(ValueError())

    assert CascadeCrash(ID, Cascaded(ORIGIN, Cascaded(ID, fault))).root is fault


@pytest.mark.anyio
async def test_a_busy_error_names_the_device_and_the_way_out() -> None:
    device = Device("busy one")

    async def work() -> None:
        await device.receive()

    with pytest.raises(anyio.BusyResourceError) as caught:
        await device.manage(work)

    assert f"{device.id.serial} 'busy one'" in str(caught.value)
    assert "cannot receive" in str(caught.value)
    assert "give each task a Device of its own" in str(caught.value)
