"""Text for logs and errors: short, whatever is told of, and without raising."""

from __future__ import annotations

import reprlib
from typing import Final

_LIMIT: Final = 300
"""So many characters a value is told in, at most."""

_short: Final = reprlib.Repr()
_short.maxlevel = 4
_short.maxstring = _short.maxlong = 100
_short.maxother = _LIMIT


def brief(value: object) -> str:
    """The ``repr`` of a value, if that is short and does not raise; otherwise the like of it."""
    try:
        text = _short.repr(value)
    except Exception as error:  # noqa: BLE001 - what is told of must not keep it from being told
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= _LIMIT else f"{text[:_LIMIT]}..."
