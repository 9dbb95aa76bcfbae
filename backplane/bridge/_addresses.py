"""Addresses, and what is safe to do with them.

===================================  ==================================================
address                              by default
===================================  ==================================================
``unix:///run/me/bridge.sock``       the file is for its owner alone, and so is whoever
                                     connects; a secret is optional
``tcp://127.0.0.1:7000``             a secret is needed: any user of the machine can connect
``tls://10.0.0.5:7000``              a certificate and a secret are needed
``tcp://10.0.0.5:7000``              refused, but for ``insecure_plaintext=True``
===================================  ==================================================
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from dataclasses import dataclass
from typing import Final, final

from ._errors import AddressError

MOST_PATH: Final = 107 if sys.platform == "linux" else 103
"""Bytes of the path of a Unix socket, as the system takes it."""
_FORM = re.compile(
    r"(tcp|tls)://(\[[0-9a-fA-F:.]+(?:%[0-9A-Za-z._-]+)?\]|[^\[\]:/\s]+):([0-9]{1,5})"
)


@final
@dataclass(frozen=True, slots=True)
class Address:
    """Where a node listens."""

    kind: str
    host: str
    """A host's name or number; for ``unix`` the file's path; for a stream what it is called."""
    port: int = 0

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine is reached by it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # of a name, nobody knows what it will mean

    def with_port(self, port: int) -> Address:
        """The same with the port that was given."""
        return Address(self.kind, self.host, port)

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix://{self.host}"
        if self.kind == "stream":
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"


def parse(text: object) -> Address:
    """An address.

    Raises:
        AddressError: It is none.
    """
    if isinstance(text, str):
        kind, found, path = text.partition("://")
        if kind == "unix" and found:
            problem = _problem_of_path(path)
            if problem is None:
                return Address("unix", path)
        else:
            match = _FORM.fullmatch(text)
            if match and int(match[3]) < 1 << 16:
                return Address(match[1], match[2].strip("[]"), int(match[3]))
            problem = _problem_of_host(path) if kind in ("tcp", "tls") else "is no address"
    else:
        problem = "is no address"
    raise AddressError(
        f"{text!r} {problem}: write tcp://127.0.0.1:7000, tls://host:7000 or "
        "unix:///run/me/bridge.sock"
    )


def _problem_of_path(path: str) -> str | None:
    if not path.startswith("/"):
        return "has no absolute path, and others may be elsewhere"
    if path.endswith("/") or "\0" in path:
        return "has no path of a file"
    size = len(os.fsencode(path))
    if size > MOST_PATH:
        return f"has a path of {size} bytes, and a socket's has {MOST_PATH} at most"
    return None


def _problem_of_host(place: str) -> str:
    host, colon, port = place.rpartition(":")
    if not colon:
        return "has no port"
    if not host:
        return "has no host"
    if port.isascii() and port.isdecimal() and int(port) >= 1 << 16:
        return "has a port beyond 65535"
    return "is no address"


def check(address: Address, *, has_secret: bool, has_tls: bool, insecure_plaintext: bool) -> None:
    """Refuse what is not safe.

    Raises:
        AddressError: It is not; the text says what to do.
    """
    if address.kind == "tls" and not has_tls:
        raise AddressError(f"{address}: give the node tls=TLS(certificate, key, ca)")
    if address.kind == "unix" or insecure_plaintext:
        return
    if not has_secret:
        raise AddressError(
            f"{address}: anybody who reaches it can connect. Give the node secret=..., at least "
            "16 random bytes that all your nodes share"
        )
    if address.kind == "tcp" and not address.is_loopback:
        raise AddressError(
            f"{address}: beyond this machine all could be read and changed on the way. Use "
            "tls://..., or say insecure_plaintext=True if something else protects it. (For this "
            "machine write 127.0.0.1 or [::1]: names are not looked up before.)"
        )
