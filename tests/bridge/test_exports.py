"""What can be reached: only what was said to be, by those who may, while it lives."""

from __future__ import annotations

import gc
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Device, DeviceID, Dropped, Killed, Line, LinkDownError
from backplane.bridge._exports import QUIET, Exports, Right
from backplane.lowlevel import Outpost

if TYPE_CHECKING:
    from wire import pair
else:
    from .wire import pair


class Port:
    """Takes nothing; it is only to be told from others."""

    def tell(self, message: Any) -> None:
        raise AssertionError

    call = tell


@pytest.fixture
def exports() -> Exports:
    return Exports()


def test_nothing_is_exported_by_itself(exports: Exports) -> None:
    assert len(exports) == 0
    assert exports.find("x", "a") is None
    assert exports.get(bytes(12)) is None
    assert exports.fault_of(bytes(12)) is None


@pytest.mark.parametrize(
    ("allow", "node", "found"),
    [
        (["*"], "a", True),
        (["a"], "a", True),
        (["a"], "ab", False),
        (["b", "a*"], "ab", True),
        (["worker-[0-9]"], "worker-3", True),
        (["worker-[0-9]"], "worker-x", False),
        (["A"], "a", False),
        ([], "a", False),
    ],
)
def test_a_name_is_found_by_those_whose_names_match(
    exports: Exports, allow: list[str], node: str, found: bool
) -> None:
    device = Device()
    exports.name("x", device.line(), allow, Right.TALK, None)

    export = exports.find("x", node)

    assert (export is not None) is found
    assert exports.find("y", node) is None
    if export is not None:
        assert (export.line, export.rights, export.port) == (device.line(), Right.TALK, None)
        assert exports.get(export.token) is export


def test_a_name_is_taken_until_it_is_revoked_or_its_device_ends(exports: Exports) -> None:
    one, two, three = Device(), Device(), Device()
    exports.name("x", one.line(), ["*"], Right.ALL, None)
    with pytest.raises(ValueError, match="'x' is exported already: revoke it first"):
        exports.name("x", two.line(), ["*"], Right.ALL, None)

    assert exports.revoke_name("x") is True
    assert exports.revoke_name("x") is False
    exports.name("x", two.line(), ["*"], Right.ALL, None)
    two.disconnect()
    exports.name("x", three.line(), ["*"], Right.ALL, None)

    found = exports.find("x", "a")
    assert found is not None
    assert found.line == three.line()


@pytest.mark.parametrize("rights", [Right.ALL, Right.MONITOR, Right.MONITOR | Right.TALK])
def test_nobody_is_told_that_he_may_talk_where_nobody_listens(
    exports: Exports, rights: Right
) -> None:
    device = Device()

    assert exports.mint(device.line(), rights).offers == rights & ~Right.TALK
    assert exports.mint(device.line(), rights, Port()).offers == rights


def test_a_token_is_the_same_for_the_same_rights_and_port(exports: Exports) -> None:
    device, port = Device(), Port()
    tokens = {
        exports.mint(device.line(), rights, to).token
        for _ in range(3)
        for rights in (Right.ALL, Right.TALK)
        for to in (None, port)
    }

    assert len(tokens) == len(exports) == 4
    assert all(len(token) == 12 for token in tokens)


def test_tokens_are_not_like_each_other(exports: Exports) -> None:
    devices = [Device() for _ in range(100)]
    tokens = [exports.mint(device.line(), Right.ALL).token for device in devices]

    assert len({token[:4] for token in tokens}) > 95


def test_who_is_served_is_served_by_all_lines_from_then_on(exports: Exports) -> None:
    device, port = Device(), Port()
    before = exports.mint(device.line(), Right.ALL)
    exports.serve(device.line(), port)

    assert before.port is None
    assert exports.mint(device.line(), Right.ALL).port is port
    other = Port()
    assert exports.mint(device.line(), Right.ALL, other).port is other
    device.disconnect()
    exports.serve(device.line(), port)
    assert len(exports) == 0
    assert exports._ports == {}


@pytest.mark.parametrize("way", ["disconnected", "dropped"])
def test_a_device_that_ends_is_forgotten_but_for_the_reason(exports: Exports, way: str) -> None:
    device = Device()
    exports.serve(device.line(), Port())
    exports.name("x", device.line(), ["*"], Right.ALL, None)
    token = exports.mint(device.line(), Right.ALL).token
    if way == "disconnected":
        device.disconnect(Killed())
    del device
    gc.collect()

    assert exports.get(token) is None
    assert exports.find("x", "a") is None
    assert exports.fault_of(token) == ((Killed() if way == "disconnected" else Dropped()),)
    assert len(exports) == 0
    assert not exports._of
    assert not exports._ports
    assert not exports._names


def test_a_token_of_one_that_has_ended_leads_nowhere_but_to_the_reason(exports: Exports) -> None:
    device = Device()
    device.disconnect(Killed())
    export = exports.mint(device.line(), Right.ALL)

    assert exports.get(export.token) is None
    assert exports.fault_of(export.token) == (Killed(),)
    assert len(exports) == 0


def test_one_that_has_ended_has_no_name(exports: Exports) -> None:
    device, other = Device("jobs"), Device()
    line = device.line()
    del device
    for ended in (line, other.line()):
        other.disconnect()
        with pytest.raises(LinkDownError) as caught:
            exports.name("x", ended, ["*"], Right.ALL, None)

        assert str(caught.value) == (
            f"cannot export it as 'x': {ended.id!r} has already disconnected"
        )
    assert exports.find("x", "a") is None
    assert len(exports) == 0


def test_a_far_device_that_two_lines_lead_to_ends_by_one_of_them_first(exports: Exports) -> None:
    far = DeviceID(5, 7)
    made = [Outpost.open(far, None, deque(), QUIET) for _ in range(2)]
    tokens = [exports.mint(line, Right.ALL).token for _, line in made]
    tokens = [*tokens, exports.mint(made[1][1], Right.TALK).token]
    made[0][0].disconnect(Killed())

    assert exports.fault_of(tokens[0]) == (Killed(),)
    assert exports.fault_of(tokens[2]) == (Killed(),)


def test_why_one_has_ended_is_known_before_it_tells(exports: Exports) -> None:
    """Another thread ends it at this very moment."""
    device = Device()
    token = exports.mint(device.line(), Right.ALL).token
    assert exports.fault_of(token) is None
    device._board.end = device._board.setdefault("end", Killed())

    assert exports.get(token) is None
    assert exports.fault_of(token) == (Killed(),)


def test_reasons_are_remembered_of_so_many(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backplane.bridge._exports._REMEMBERED", 3)
    devices = [Device() for _ in range(5)]
    tokens = [exports.mint(device.line(), Right.ALL).token for device in devices]
    for device in devices:
        device.disconnect(Killed())

    known = [exports.fault_of(token) for token in tokens]
    assert known == [None, None, (Killed(),), (Killed(),), (Killed(),)]


def test_what_is_revoked_leads_nowhere(exports: Exports) -> None:
    device, other = Device(), Device()
    exports.serve(device.line(), Port())
    tokens = [exports.mint(device.line(), rights).token for rights in (Right.ALL, Right.TALK)]
    kept = exports.mint(other.line(), Right.ALL).token
    exports.name("x", device.line(), ["*"], Right.ALL, None)
    exports.name("y", other.line(), ["*"], Right.ALL, None)
    exports.revoke(device.line())

    assert [exports.get(token) for token in tokens] == [None, None]
    assert exports.find("x", "a") is None
    assert exports.find("y", "a") is not None
    assert exports.get(kept) is not None
    assert exports._ports == {}
    device.disconnect(Killed())
    assert exports.fault_of(tokens[0]) is None


def test_what_was_revoked_can_be_exported_again_under_another_token(exports: Exports) -> None:
    device = Device()
    old = exports.mint(device.line(), Right.ALL).token
    exports.revoke(device.line())
    new = exports.mint(device.line(), Right.ALL).token
    assert new != old
    device.disconnect(Killed())

    assert exports.fault_of(new) == (Killed(),)
    assert exports.fault_of(old) is None


def test_ten_thousand_that_come_and_go_leave_their_reasons_only(exports: Exports) -> None:
    stays = Device()
    exports.mint(stays.line(), Right.ALL)
    for _ in range(10_000):
        exports.mint(Device().line(), Right.ALL)

    assert len(exports) == 1
    assert len(exports._of) == 1
    assert len(exports._ended) <= 4096
    assert len(exports._events) == 0


def test_the_one_who_looks_by_himself_is_not_woken() -> None:
    QUIET.wake()
    QUIET.wake_soon()


def test_the_port_of_an_export_is_that_of_lines_in_messages() -> None:
    exports, port, device = Exports(), Port(), Device()
    exports.name("it", device.line(), ["*"], Right.TALK, port)

    assert exports.mint(device.line(), Right.ALL).port is port


@pytest.mark.heavy
def test_lines_are_sent_and_opened_in_many_threads_at_once() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        here, there, wire = pair()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(2000):
                    devices = [Device(), Device()]
                    data = here.session.payloads.pack([each.line() for each in devices])
                    lines = there.session.payloads.open(data, list[Line])
                    assert [line.id for line in lines] == [each.id for each in devices]
                    again = there.session.payloads.open(data, list[Line])
                    assert again == lines
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        number = 0
        while any(thread.is_alive() for thread in threads):
            number += 1
            device = Device()
            here.exports.name(str(number), device.line(), ["*"], Right.ALL, None)
            wire.move()
        wire.settle()
    finally:
        sys.setswitchinterval(interval)

    assert errors == []
