"""Certificates: who the host at the other end is, and that nobody else can read."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, final

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from ._auth import PLAIN
from ._errors import AuthError, NotConnectedError


@final
class TLS:
    """A node's certificate, and whose certificates it believes. Both sides show one.

    A certificate must name the node that it is for, as a DNS name or a URI in
    its subject alternative name. What host it runs on does not matter. How to make
    some with ``openssl`` is told in ``docs/security.md``.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext

    def __init__(
        self,
        certificate: str | PathLike[str],
        key: str | PathLike[str],
        authority: str | PathLike[str],
        *,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Load them.

        Args:
            certificate: A PEM file with this node's certificate, and those that it rests on.
            key: A PEM file with its key.
            authority: A PEM file with the certificates by which those of others are signed.
            names: Which node a peer's certificate is for, by a name in it that is not the node's:
                ``{"host-7.example": "b"}``. Other names stand for themselves.

        Raises:
            OSError: A file cannot be read. ``ssl.SSLError``, which is one: or holds not what it
                should, or the key is that of another certificate.
            ValueError: There is no certificate of the node in its file.
        """
        self._names = dict(names or {})
        own, private = _File("certificate", certificate), _File("key", key)
        others = _File("authority", authority)
        self._leaf = own.leaf()
        if "PRIVATE KEY-----" not in private.read():
            raise private.wrong("holds no key")
        others.read()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.client.check_hostname = False  # nodes are known by their names, not their hosts
        for context in (self.server, self.client):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            others.trust(context)
            _show(context, own, private)

    def binding(self, peer: bytes | None, dialled: bool) -> bytes:
        """What is said in the handshake of this connection, and of no other.

        Args:
            peer: The peer's certificate.
            dialled: Whether this side has dialled.
        """
        server, client = (peer or b"", self._leaf) if dialled else (self._leaf, peer or b"")
        return hashlib.sha256(_digest(server) + _digest(client)).digest()

    def certified(self, certificate: Mapping[str, Any]) -> frozenset[str]:
        """The nodes that a certificate is for."""
        entries = certificate.get("subjectAltName", ())
        found = {name for kind, name in entries if kind in ("DNS", "URI")}
        return frozenset(self._names.get(name, name) for name in found)


@final
class _File:
    """One of the files; its errors say which, and what it is for."""

    def __init__(self, role: str, path: str | PathLike[str]) -> None:
        self.path = fspath(path)
        self._role = role

    def read(self) -> str:
        """What is in it; the bytes that are no text are no part of what is looked for."""
        try:
            return Path(self.path).read_text("ascii", "replace")
        except OSError as error:
            text = f"cannot read the file of the {self._role}: {error.strerror}"
            raise OSError(error.errno, text, self.path) from error

    def wrong(self, what: str, error: ssl.SSLError | None = None) -> ssl.SSLError:
        """The error that says so, and what the library says."""
        why = "" if error is None else f" ({error.strerror})"
        number = 0 if error is None else error.errno
        return ssl.SSLError(number, f"{self.path!r}, the file of the {self._role}, {what}{why}")

    def leaf(self) -> bytes:
        """The first certificate in it."""
        pem, end = self.read(), "-----END CERTIFICATE-----"
        start = pem.find("-----BEGIN CERTIFICATE-----")
        if start < 0 or end not in pem[start:]:
            raise ValueError(f"{self.path!r}, the file of the certificate, holds none")
        try:
            found = ssl.PEM_cert_to_DER_cert(pem[start : pem.index(end, start) + len(end)])
        except ValueError as error:
            raise ValueError(
                f"{self.path!r}, the file of the certificate, is damaged: {error}"
            ) from error
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found)
        except ssl.SSLError as error:
            raise self.wrong("is damaged", error) from error
        return found

    def trust(self, context: ssl.SSLContext) -> None:
        """Have the certificates in it be believed."""
        try:
            context.load_verify_locations(self.path)
        except ssl.SSLError as error:
            none = error.reason == "NO_CERTIFICATE_OR_CRL_FOUND"
            what = "holds no certificate" if none else "is damaged"
            raise self.wrong(what, error) from error


def _show(context: ssl.SSLContext, certificate: _File, key: _File) -> None:
    """Have a certificate be shown, and its key be used."""
    encrypted = key.wrong("is encrypted: a node needs one that is not")

    def ask() -> str:  # else OpenSSL would ask at the terminal
        raise encrypted

    try:
        context.load_cert_chain(certificate.path, key.path, ask)
    except ssl.SSLError as error:
        if error is encrypted:
            raise
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        what = "is not for" if mismatch else "cannot be used with"
        raise key.wrong(f"{what} the certificate in {certificate.path!r}", error) from error


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@final
@dataclass(frozen=True, slots=True)
class Secured:
    """A stream on which bytes can be trusted as far as they ever will."""

    stream: ByteStream
    binding: bytes = field(default=PLAIN, repr=False)
    """What proofs that are given on it are bound to."""
    names: frozenset[str] | None = None
    """The nodes that the peer's certificate is for; None if it has shown none."""


async def secure(
    tls: TLS, stream: ByteStream, dialled: bool, where: str, seconds: float
) -> Secured:
    """Have both sides show their certificates. If they cannot, the stream is closed.

    Raises:
        AuthError: The peer's certificate is not believed, or the peer does not speak TLS.
        NotConnectedError: The peer has gone.
        TimeoutError: It took too long.
    """
    try:
        with anyio.fail_after(seconds):
            secured = await TLSStream.wrap(
                stream,
                server_side=not dialled,
                ssl_context=tls.client if dialled else tls.server,
                standard_compatible=False,
            )
    except BaseException as error:
        await anyio.aclose_forcefully(stream)
        if isinstance(error, ssl.SSLCertVerificationError):
            why = f"its certificate is not believed: {error.verify_message}"
            raise AuthError(f"no TLS with {where}: {why}") from error
        if isinstance(error, ssl.SSLError):
            raise AuthError(f"no TLS with {where}: {error}") from error
        if isinstance(error, anyio.EndOfStream | anyio.BrokenResourceError):
            why = "it closed when TLS was to be agreed on: is it a node that listens with tls://?"
            raise NotConnectedError(where, f"connect with {where}", why) from error
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"no TLS with {where} within {seconds:g} seconds") from error
        raise
    leaf = secured.extra(TLSAttribute.peer_certificate_binary)
    certificate = secured.extra(TLSAttribute.peer_certificate) or {}
    return Secured(secured, tls.binding(leaf, dialled), tls.certified(certificate))
