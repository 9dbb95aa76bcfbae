"""Secrets that nodes share: where they come from, and which are good enough."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from ._auth import LEAST_SECRET

Secret: TypeAlias = bytes | Path
"""At least 16 random bytes, or a file that holds such and that only its owner may read."""

Secrets: TypeAlias = Secret | list[Secret] | tuple[Secret, ...]
"""One secret, or those that are accepted."""

_SALT = b"backplane/1 passphrase"


def from_passphrase(passphrase: str) -> bytes:
    """A secret of a passphrase, which takes a while to guess (scrypt; 30 ms or so each).

    Random bytes are better: ``secrets.token_bytes(32)``.

    Raises:
        ValueError: It has fewer than 12 characters.
    """
    if len(passphrase) < 12:
        raise ValueError("a passphrase has at least 12 characters; random bytes are better")
    return hashlib.scrypt(passphrase.encode(), salt=_SALT, n=1 << 14, r=8, p=1, dklen=32)


def load(secret: Secrets | None) -> tuple[bytes, ...]:
    """The secrets that are accepted, the one to prove first.

    Raises:
        ValueError: One is too short, or others may read its file.
        TypeError: It is none.
    """
    if secret is None:
        return ()
    if isinstance(secret, bytes | Path):
        return (_load(secret),)
    if not isinstance(secret, list | tuple) or not secret:
        raise TypeError(
            "a secret is bytes or a pathlib.Path, or several of these; of a passphrase, "
            "from_passphrase(...) makes one"
        )
    return tuple(_load(each) for each in secret)


def load_all(
    secrets: Mapping[str, Secrets] | None,
) -> dict[str, tuple[bytes, ...]]:
    """The same, by the names of peers.

    Raises:
        TypeError: One has none: whoever calls himself so would be believed.
    """
    for name, secret in (secrets or {}).items():
        if secret is None:
            raise TypeError(f"secrets[{name!r}] is None: a node without a secret proves nothing")
    return {name: load(secret) for name, secret in (secrets or {}).items()}


def _load(secret: Secret) -> bytes:
    if isinstance(secret, Path):
        with secret.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
                raise ValueError(f"others may read the secret in {secret}: chmod 600 it")
            secret = file.read(1 << 16).strip()
    if not isinstance(secret, bytes):
        raise TypeError(f"a secret is bytes or a pathlib.Path, not a {type(secret).__qualname__}")
    if len(secret) < LEAST_SECRET:
        raise ValueError(
            f"a secret of {len(secret)} bytes can be guessed: take at least {LEAST_SECRET} random "
            "ones, such as secrets.token_bytes(32)"
        )
    return secret
