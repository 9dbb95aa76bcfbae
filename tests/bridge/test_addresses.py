"""Addresses: their form, and which are safe."""

from __future__ import annotations

import pytest

from backplane.bridge import AddressError
from backplane.bridge._addresses import MOST_PATH, Address, check, parse

LOOPBACK = ["tcp://127.0.0.1:7000", "tcp://127.3.2.1:1", "tcp://[::1]:7000"]
OUTSIDE = [
    "tcp://10.0.0.5:7000",
    "tcp://0.0.0.0:7000",
    "tcp://[::]:7000",
    "tcp://[fe80::1%eth0]:7000",
    "tcp://localhost:7000",
    "tcp://host.example:7000",
]
TLS = ["tls://127.0.0.1:7000", "tls://10.0.0.5:7000", "tls://host.example:7000"]
UNIX = ["unix:///run/me/bridge.sock", "unix:///" + "x" * (MOST_PATH - 1)]


@pytest.mark.parametrize("text", [*LOOPBACK, *OUTSIDE, *TLS, *UNIX])
def test_an_address_is_shown_as_it_was_written(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "127.0.0.1:7000", "tcp://", "tcp://host", "tcp://host:", "tcp://:7000",
        "tcp://host:65536", "tcp://host:-1", "tcp://::1:7000", "tcp://[::1:7000",
        "tcp://host:70000", "tcp://host:7000/", "tcp://ho/st:7000", "udp://host:7000",
        "unix://", "unix:///run/\0hidden", "TCP://127.0.0.1:7000", " tcp://127.0.0.1:7000",
        "tcp://127.0.0.1:7000\n", "tcp://12\n7.0.0.1:7000", "tcp://127.0.0.1:\u0661", None, 7000,
        b"tcp://127.0.0.1:7000",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_the_error_says_what_one_is(text: object) -> None:
    with pytest.raises(AddressError, match=r"write tcp://127\.0\.0\.1:7000"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("unix://here/s", "has no absolute path"),
        ("unix://", "has no absolute path"),
        ("unix:///run/", "has no path of a file"),
        ("unix:///" + "\xe9" * 60, "has a path of 121 bytes, and a socket's has"),
        ("unix:///" + "x" * MOST_PATH, f"has a path of {MOST_PATH + 1} bytes"),
        ("tcp://host", "has no port"),
        ("tls://", "has no port"),
        ("tcp://:7000", "has no host"),
        ("tcp://host:65536", "has a port beyond 65535"),
        ("tcp://host:", "is no address"),
        ("udp://host:7000", "is no address"),
        ("host:7000", "is no address"),
        (None, "is no address"),
    ],
)
def test_what_is_wrong_with_it_is_said(text: object, problem: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse(text)

    assert f"{text!r} {problem}" in str(caught.value)


def test_an_address_error_is_a_value_error() -> None:
    assert issubclass(AddressError, ValueError)


def test_a_port_is_filled_in() -> None:
    assert str(parse("tcp://[::1]:0").with_port(7)) == "tcp://[::1]:7"


@pytest.mark.parametrize("text", LOOPBACK)
def test_what_only_this_machine_reaches_is_loopback(text: str) -> None:
    assert parse(text).is_loopback


@pytest.mark.parametrize("text", OUTSIDE)
def test_nothing_else_is_loopback_and_no_name_is(text: str) -> None:
    assert not parse(text).is_loopback


def allows(text: str, *, secret: bool = False, tls: bool = False, insecure: bool = False) -> bool:
    try:
        check(parse(text), has_secret=secret, has_tls=tls, insecure_plaintext=insecure)
    except AddressError as error:
        return text not in str(error)
    return True


@pytest.mark.parametrize("text", UNIX)
def test_a_unix_socket_needs_nothing(text: str) -> None:
    assert allows(text)
    assert allows(text, secret=True)


@pytest.mark.parametrize("text", LOOPBACK)
def test_loopback_needs_a_secret(text: str) -> None:
    assert not allows(text)
    assert not allows(text, tls=True)
    assert allows(text, secret=True)


@pytest.mark.parametrize("text", OUTSIDE)
def test_nothing_goes_beyond_this_machine_in_the_open(text: str) -> None:
    assert not allows(text)
    assert not allows(text, secret=True)
    assert not allows(text, secret=True, tls=True)


@pytest.mark.parametrize("text", [*LOOPBACK, *OUTSIDE])
def test_it_does_if_that_is_written_out(text: str) -> None:
    assert allows(text, insecure=True)


@pytest.mark.parametrize("text", TLS)
def test_tls_needs_a_certificate_and_a_secret(text: str) -> None:
    assert not allows(text)
    assert not allows(text, secret=True)
    assert not allows(text, tls=True)
    assert not allows(text, secret=True, insecure=True)
    assert allows(text, secret=True, tls=True)
    assert allows(text, tls=True, insecure=True)


def test_addresses_are_equal_by_what_they_say() -> None:
    assert parse("tcp://127.0.0.1:1") == Address("tcp", "127.0.0.1", 1)
