"""Proof of who is at the other end, without telling the secret.

Both sides say hello with a fresh nonce; then the one who has dialled proves
that it knows the secret, and then the other. A proof is a MAC over all that
was said, over who says it, and over what the connection is bound to (with TLS,
the certificates). So a proof is worth nothing in another connection, another
role, or after anything in either hello was changed on the way.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

NONCE: Final = 32
INCARNATION: Final = 16
LEAST_SECRET: Final = 16
"""Bytes: shorter ones can be guessed from one recorded handshake."""
PLAIN: Final = b"plain"
"""What a connection without TLS is bound to."""

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,255}")


def is_name(name: str) -> bool:
    """Whether a node may be called so."""
    return _NAME.fullmatch(name) is not None


def check_name(name: object) -> str:
    """A node's name.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(name, str) or not is_name(name):
        raise ValueError(
            f"a node's name is 1 to 255 of the characters A-Z a-z 0-9 . _ @ -, not {name!r}"
        )
    return name


def transcript(hello_of_dialler: bytes, hello_of_answerer: bytes, binding: bytes) -> bytes:
    """What was said, in short."""
    digest = hashlib.sha256()
    for part in (hello_of_dialler, hello_of_answerer, binding):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def proof(secret: bytes, dialled: bool, said: bytes) -> bytes:
    """That one who knows the secret has said this."""
    role = b"dialler" if dialled else b"answerer"
    return hmac.digest(secret, b"backplane/1 " + role + b" " + said, "sha256")


def accepts(secrets: tuple[bytes, ...], dialled: bool, said: bytes, mac: bytes) -> bytes | None:
    """The secret that was proved; None if it is none of these."""
    for secret in secrets:
        if hmac.compare_digest(proof(secret, dialled, said), mac):
            return secret
    return None
