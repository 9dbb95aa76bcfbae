"""Faults on the wire: what is told, what is not, and what is made of it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane import (
    Cancelled,
    Cascaded,
    Device,
    DeviceID,
    Dropped,
    Failed,
    Fault,
    Killed,
    NoConnection,
)
from backplane.bridge._errors import EncodeError, FrameError, RemoteError
from backplane.bridge._faults import (
    open_fault,
    open_id,
    pack_fault,
    pack_id,
    pack_name,
    text_of,
    traceback_of,
)
from backplane.bridge._frames import WireFault, WireID
from backplane.bridge._limits import Limits

LIMITS = Limits(text=100, path=3)
IDS = st.builds(DeviceID, st.integers(1, 2**63 - 1), st.integers(0, 2**64 - 1))
ROOTS: st.SearchStrategy[Any] = st.one_of(
    st.builds(Dropped),
    st.builds(Cancelled),
    st.builds(Killed),
    st.builds(NoConnection, st.text(st.characters(codec="utf-8"), max_size=255)),
)


def cascade(root: Fault, path: list[DeviceID]) -> Fault:
    for sender in reversed(path):
        root = Cascaded(sender, root)
    return root


def packed(fault: Fault | None, tracebacks: bool = False, limits: Limits = LIMITS) -> WireFault:
    wire = pack_fault(fault, limits, tracebacks)
    assert wire is not None
    return wire


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@given(ROOTS, st.lists(IDS, max_size=3))
def test_a_fault_comes_out_as_it_went_in(root: Any, path: list[DeviceID]) -> None:
    fault = cascade(root, path)

    assert open_fault(packed(fault)) == fault


def test_no_fault_is_none() -> None:
    assert pack_fault(None, LIMITS, True) is None
    assert open_fault(None) is None


@given(ROOTS, st.lists(IDS, min_size=4, max_size=9))
def test_of_a_long_cascade_the_nearest_are_told_and_the_first_cause(
    root: Any, path: list[DeviceID]
) -> None:
    assert open_fault(packed(cascade(root, path))) == cascade(root, path[:3])


@pytest.mark.parametrize(
    "error", [ValueError("a", 1), KeyError("x"), SystemExit(3), OSError(2, "no")]
)
def test_an_exception_is_told_by_its_class_and_text(error: BaseException) -> None:
    fault = open_fault(packed(Failed(raised(error))))

    assert isinstance(fault, Failed)
    remote = fault.exception
    assert isinstance(remote, RemoteError)
    assert (remote.type_name, remote.text) == (f"builtins.{type(error).__name__}", str(error))
    assert remote.traceback == ""
    assert str(remote) == f"{remote.type_name}: {remote.text}"


def test_tracebacks_are_told_only_if_they_are_to_be() -> None:
    fault = Failed(raised(ValueError("a secret path")))

    assert packed(fault).traceback == ""
    told = packed(fault, tracebacks=True, limits=Limits()).traceback
    assert "in raised" in told
    opened = open_fault(WireFault("failed", "x", "y", told))
    assert isinstance(opened, Failed)
    assert told in opened.exception.__notes__[0]


def test_long_texts_are_cut() -> None:
    kind = type("x" * 500, (Exception,), {})
    wire = packed(Failed(raised(kind("y" * 500 + "\n" * 5000))), tracebacks=True)

    assert len(wire.type_name) == len(wire.text) == 100
    assert len(wire.traceback) == 1600


def test_what_is_no_unicode_is_told_by_its_number() -> None:
    wire = packed(Failed(ValueError("\udc80" * 60)))

    assert wire.text == (r"\udc80" * 60)[:100]
    assert packed(NoConnection("\udc80")).node == r"\udc80"
    assert pack_name("a\udc80" + "x" * 300) == (r"a\udc80" + "x" * 300)[:255]
    assert pack_name(None) is None
    assert pack_name(7) == "7"  # type: ignore[arg-type]


def test_an_exception_that_cannot_be_shown_is_told_all_the_same() -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise self

    assert packed(Failed(Nasty())).text == "(it cannot be shown)"
    assert text_of(Nasty()) == "(it cannot be shown)"


def test_a_traceback_that_cannot_be_shown_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(error: BaseException) -> None:
        raise RecursionError

    monkeypatch.setattr("traceback.format_exception", broken)

    assert traceback_of(ValueError()) == ""


def test_a_fault_from_a_third_node_is_handed_on_as_it_is() -> None:
    far = RemoteError("their.Error", "their text", "their traceback")

    assert packed(Failed(far), tracebacks=True) == WireFault(
        "failed", "their.Error", "their text", "their traceback"
    )
    assert packed(Failed(far)).traceback == ""


def test_a_remote_error_can_be_copied() -> None:
    error = RemoteError("a.B", "text", "lines")
    again = pickle.loads(pickle.dumps(error))

    assert (again.type_name, again.text, again.traceback) == ("a.B", "text", "lines")
    assert str(RemoteError("a.B", "")) == "a.B"


@pytest.mark.parametrize("name", ["a.B", "backplane.bridge.GoneError"])
def test_the_traceback_of_a_remote_error_is_shown_below_it_alone(name: str) -> None:
    error = RemoteError.named(name, "text", "line one\nline two\n")

    assert repr(error) == f"{type(error).__name__}({name!r}, 'text')"
    assert "line" not in repr(Failed(error))
    assert "line" not in str(error)
    assert traceback_of(error).count("line one\nline two") == 1
    assert error.traceback == "line one\nline two\n"


def test_the_identity_of_a_device_crosses() -> None:
    device = Device()

    assert open_id(pack_id(device.id)) == device.id


@pytest.mark.parametrize(
    ("serial", "realm"), [(0, 0), (-1, 0), (1 << 63, 0), (1, -1), (1, 1 << 64), (1 << 200, 0)]
)
def test_an_impossible_identity_crosses_neither_way(serial: int, realm: int) -> None:
    with pytest.raises(FrameError):
        open_id(WireID(serial, realm))
    with pytest.raises(EncodeError, match="no Device can be"):
        pack_id(DeviceID(serial, realm))
    cascaded = Cascaded(DeviceID(serial, realm), Killed())
    assert packed(cascaded) == WireFault("killed")
    with pytest.raises(FrameError):
        open_fault(WireFault("killed", path=[WireID(serial, realm)]))


@pytest.mark.parametrize("kind", ["", "Killed", "cascaded", "x" * 1000])
def test_an_unknown_kind_is_an_error(kind: str) -> None:
    with pytest.raises(FrameError, match="an unknown kind of fault"):
        open_fault(WireFault(kind))
