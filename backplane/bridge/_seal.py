"""How a connection of datagrams begins, and how it is kept secret.

Two datagrams begin one: the dialler sends `Open`, the one who answers sends
`Answer`, each with a fresh nonce and with a MAC by a secret that both know.
Who does not know it causes no state and gets no answer. From the secret and
from all that both have said, the keys are derived, one for each direction, so
no two connections have the same; a datagram's number is its nonce. The hash of
what both have said is also what the session's own proofs are bound to.

There is no forward secrecy: who has recorded datagrams and learns the secret
later can read them.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, TypeVar, final

import msgspec

from ._auth import INCARNATION, NONCE, is_name
from ._datagrams import SESSION
from ._frames import Wire

VERSION: Final = 1
LEAST_WINDOW: Final = 1024

_MAC: Final = 32
_LONGEST: Final = 2048
_OPEN, _ANSWER = b"\xb1", b"\xb2"

G = TypeVar("G", bound="Greeting")


class Greeting(Wire):
    """What both begin with."""

    session: bytes
    incarnation: bytes
    nonce: bytes
    window: int
    """How much may be sent to the one who says this before it has taken it."""


@final
class Open(Greeting):
    """The dialler's."""

    versions: list[int]
    sender: str
    to: str
    sealed: bool


@final
class Answer(Greeting):
    """The other one's."""

    version: int


_of_open = msgspec.msgpack.Decoder(Open)
_of_answer = msgspec.msgpack.Decoder(Answer)
_encoder = msgspec.msgpack.Encoder()


def is_open(datagram: bytes) -> bool:
    """Whether somebody begins a connection, to judge by the first byte."""
    return datagram[:1] == _OPEN and len(datagram) <= _LONGEST


def is_answer(datagram: bytes) -> bool:
    """Whether somebody answers, to judge by the first byte."""
    return datagram[:1] == _ANSWER and len(datagram) <= _LONGEST


def pack_open(greeting: Open, secret: bytes) -> bytes:
    """The datagram that begins a connection."""
    body = _encoder.encode(greeting)
    return _OPEN + _mac(secret, b"open", body) + body


def pack_answer(greeting: Answer, secret: bytes, opening: bytes) -> bytes:
    """The datagram that answers."""
    body = _encoder.encode(greeting)
    return _ANSWER + _mac(secret, b"answer", _digest(opening) + body) + body


def read_open(datagram: bytes) -> Open | None:
    """What somebody says who begins; None if it is nothing. It is not proved."""
    greeting = _read(datagram, _of_open)
    if greeting is None or not (is_name(greeting.sender) and is_name(greeting.to)):
        return None
    return greeting


def read_answer(datagram: bytes) -> Answer | None:
    """What somebody answers; None if it is nothing. It is not proved."""
    return _read(datagram, _of_answer)


def proved_open(datagram: bytes, secrets: tuple[bytes, ...]) -> bytes | None:
    """The secret that the one who begins knows; None if it is none of these."""
    mac, body = datagram[1 : 1 + _MAC], datagram[1 + _MAC :]
    for secret in secrets:
        if hmac.compare_digest(mac, _mac(secret, b"open", body)):
            return secret
    return None


def is_proved_answer(datagram: bytes, secret: bytes, opening: bytes) -> bool:
    """Whether the one who answers knows the secret, and has heard just what was sent."""
    mac, body = datagram[1 : 1 + _MAC], datagram[1 + _MAC :]
    return hmac.compare_digest(mac, _mac(secret, b"answer", _digest(opening) + body))


def transcript(opening: bytes, answer: bytes) -> bytes:
    """What both have said, in short: what the session's proofs are bound to."""
    digest = hashlib.sha256(b"backplane/1 datagrams ")
    for part in (opening, answer):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _mac(secret: bytes, what: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, b"backplane/1 datagrams " + what + b" " + body, "sha256")


def _read(datagram: bytes, decoder: msgspec.msgpack.Decoder[G]) -> G | None:
    try:
        greeting = decoder.decode(datagram[1 + _MAC :])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    lengths = len(greeting.session), len(greeting.incarnation), len(greeting.nonce)
    if lengths != (SESSION, INCARNATION, NONCE) or not LEAST_WINDOW <= greeting.window < 1 << 40:
        return None
    return greeting


@final
class ChaCha:
    """Seals with ChaCha20-Poly1305, and keys that are this connection's alone."""

    overhead = 16

    def __init__(self, secret: bytes, said: bytes, *, dialled: bool) -> None:
        """Derive the keys.

        Args:
            secret: What both ends know.
            said: The transcript of how the connection began.
            dialled: Whether this is the end that has begun it.

        Raises:
            ModuleNotFoundError: ``cryptography`` is not installed.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        mine, theirs = _keys(secret, said)
        if not dialled:
            mine, theirs = theirs, mine
        self._mine = ChaCha20Poly1305(mine)
        self._theirs = ChaCha20Poly1305(theirs)
        self._invalid = InvalidTag

    def seal(self, number: int, header: bytes, data: bytes) -> bytes:
        """The sealed bytes, which hold only together with this header."""
        return self._mine.encrypt(number.to_bytes(12, "big"), data, header)

    def unseal(self, number: int, header: bytes, sealed: bytes) -> bytes | None:
        """The bytes, or None if they or the header are not the peer's."""
        try:
            return self._theirs.decrypt(number.to_bytes(12, "big"), sealed, header)
        except self._invalid:
            return None


def _keys(secret: bytes, said: bytes) -> tuple[bytes, bytes]:
    """The dialler's key and the other one's, by HKDF-SHA256."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derive = HKDF(SHA256(), 64, salt=said, info=b"backplane/1 datagrams seal").derive
    both = derive(secret)
    return both[:32], both[32:]
