"""What is taken to a child process and back: the function, values, exceptions.

The function goes by name, as a pickle has it: the child imports its module. A function of
``__main__`` is found there too: the child runs the main file under another name first, as
multiprocessing does, with multiprocessing's own code, so that a main file that works with
the one works with the other. But it does so only if what is sent refers to ``__main__``.

Why pickles are allowed here, see ``_child_control``.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any, Final, TypedDict

from ._child_exit import NotSendableError, Raised
from ._errors import RemoteError

_MAX_TEXT = 65536
"""How much of a traceback is sent, in characters."""

_unguarded: Final[list[NotSendableError]] = []
"""What the main file of this process was told when it started processes without its guard."""

Outcome = tuple[bytes | None, str, str, str, str]
"""An exception on its way: its pickle, its class, text and traceback; why it has no pickle."""

_MAIN: Final = (
    "a process runs the main file once more to find what is defined there: have a file, with "
    'what runs under `if __name__ == "__main__":`, or put the function into another module'
)


class Boot(TypedDict):
    """What a child needs to begin. Builtins only: it is opened before anything is imported."""

    name: str
    path: list[str]
    argv: list[str]
    main: dict[str, str]
    """How to run the main file, if it is needed: see ``multiprocessing.spawn.prepare``."""
    call: bytes
    reports_start: bool
    reports_alive: bool
    """Whether anybody hears when the function reports that it is alive."""
    backend: str
    backend_options: bytes
    levels: dict[str, int]
    """The levels of the parent's loggers."""
    nodes: tuple[str, str, bytes] | None
    """The parent's node, what the child's is to be called, and their secret."""
    watch: bool
    """Whether the child itself must see to it that it does not outlive its parent."""


def pack_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The pickle of a call.

    Raises:
        NotSendableError: It cannot be.
    """
    check_findable(fn)
    try:
        return pickle.dumps((fn, args, kwargs), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise NotSendableError(
            f"the arguments of {name_of(fn)} cannot be taken to another process: {error}"
        ) from error


def check_findable(fn: Callable[..., Any]) -> None:
    """Raise unless another process will find a function by its name.

    Raises:
        NotSendableError: It will not.
    """
    if not callable(fn):
        raise NotSendableError(f"another process can run a function, not {fn!r}")
    try:
        data = pickle.dumps(fn, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise NotSendableError(
            f"another process cannot find {name_of(fn)}: {_why(fn, error)}; "
            "it must be importable: define it with `def` at the top level of a module"
        ) from error
    if b"__main__" in data:
        _check_main(name_of(fn))


def _check_main(name: str) -> None:
    main = _main_of()
    if not main:
        raise NotSendableError(
            f"another process cannot find {name}: it is defined in a program that has no file "
            f"(it was typed in, piped in, or given with -c); {_MAIN}"
        )
    if main.get("init_main_from_name", "").endswith(".__main__"):
        raise NotSendableError(
            f"another process cannot find {name}: it is defined in the __main__.py of a "
            "package, which no other process runs, as with multiprocessing; "
            "put it into another module"
        )


def _why(fn: Callable[..., Any], error: Exception) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", "")
    if inspect.ismethod(fn):
        return f"it is a method of an object that cannot be sent ({error})"
    if "<lambda>" in name:
        return "it is a lambda"
    if "<locals>" in name:
        return "it is defined inside another function"
    return str(error)


def name_of(fn: object) -> str:
    """What to call a function in a text."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    module = getattr(fn, "__module__", None)
    name = getattr(fn, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(fn)


def make_boot(call: bytes, name: str) -> Boot:
    """What a child needs to begin with a call, but for its options."""
    data = _preparation(name)
    return Boot(
        name=name,
        path=list(data["sys_path"]),
        argv=list(data["sys_argv"]),
        main=_main_of() if b"__main__" in call else {},
        call=call,
        reports_start=False,
        reports_alive=False,
        backend="asyncio",
        backend_options=pickle.dumps({}),
        levels=_levels(),
        nodes=None,
        watch=True,
    )


def _preparation(name: str) -> dict[str, Any]:
    # Not needed by those who import the bridge for something else, and slow.
    from multiprocessing.spawn import get_preparation_data

    try:
        return get_preparation_data(name)
    except RuntimeError:  # this is a child, which runs its main file
        error = NotSendableError(
            f"the main file starts process {name!r} even when another process runs it; {_MAIN}"
        )
        _unguarded.append(error)
        raise error from None


def _main_of() -> dict[str, str]:
    data = _preparation("")
    main = {key: data[key] for key in data if key.startswith("init_main_from_")}
    path = main.get("init_main_from_path")
    return {} if path is not None and not os.path.isfile(path) else main


def _levels() -> dict[str, int]:
    """What the loggers of this process let through, so that a child sends nothing else."""
    manager = logging.root.manager
    levels = {
        name: logger.level
        for name, logger in list(manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and logger.level
    }
    return {"": logging.root.level, **levels}


def pack_value(value: object, what: str) -> bytes:
    """The pickle of a value.

    Raises:
        NotSendableError: It cannot be; the text begins with ``what``.
    """
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise NotSendableError(f"{what} cannot be taken to another process: {error}") from error


def pack_exception(error: BaseException) -> bytes:
    """The pickle of an exception, or of what can be told of it; it never raises."""
    kind = type(error)
    try:
        trace = "".join(traceback.format_exception(error))[-_MAX_TEXT:]
    except Exception:  # noqa: BLE001 - the user's code too
        trace = ""
    whole: bytes | None = None
    # What is no Exception would end the parent's loop, or look like a cancellation there.
    why = "is no Exception: as itself it would end more here than the call"
    if isinstance(error, Exception):
        try:
            whole = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        except Exception as obstacle:  # noqa: BLE001 - it goes as a text
            why = (
                f"could not be pickled there: {_text_of(obstacle)}; "
                "keep nothing in it that cannot be pickled"
            )
    # A class of the main file: there, and on the way here, it is known by another name.
    kind_name = f"{kind.__module__}.{kind.__qualname__}".replace("__mp_main__.", "__main__.", 1)
    trace = trace.replace("\n__mp_main__.", "\n__main__.")
    outcome: Outcome = (whole, kind_name, _text_of(error), trace, why)
    return pickle.dumps(outcome)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:_MAX_TEXT]
    except Exception:  # noqa: BLE001 - the user's code
        return "<its text cannot be made>"


def unpack_exception(data: bytes) -> Raised:
    """Undo ``pack_exception``; a ``RemoteError`` has a note why it is none other."""
    outcome: Outcome = pickle.loads(data)
    whole, kind, text, trace, why = outcome
    if whole is not None:
        try:
            error = pickle.loads(whole)
            if not isinstance(error, Exception):
                raise TypeError(f"it has become an object of {type(error)}")
            error.add_note(f"The traceback in the child process:\n{trace}")
            return Raised(error)
        except Exception as obstacle:  # noqa: BLE001 - many cannot be put together again
            why = f"could not be unpickled here: {_text_of(obstacle)}"
            if not isinstance(obstacle, ImportError):
                why += "; pass all arguments on to super().__init__()"
    remote = RemoteError(kind, text, trace)
    remote.add_note(f"{kind} {why}")
    return Raised(remote)


def unpack_value(data: bytes, what: str) -> Any:
    """Undo ``pack_value``.

    Raises:
        NotSendableError: It cannot be put together again here.
    """
    try:
        return pickle.loads(data)
    except Exception as error:
        raise NotSendableError(f"{what} cannot be put together again: {error}") from error


def open_call(
    boot: Boot,
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Find the function of a call, in the child."""
    if boot["main"]:
        from multiprocessing import process, spawn

        current: Any = process.current_process()
        current.name = boot["name"]
        # A main file without `if __name__ == "__main__"` starts its children again here:
        # this is how `make_boot` knows.
        current._inheriting = True
        try:
            spawn.prepare(dict(boot["main"]))
        except Exception:
            if _unguarded:  # whatever its supervisors have made of it
                raise _unguarded[0] from None
            raise
        finally:
            del current._inheriting
    found: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
    try:
        found = pickle.loads(boot["call"])
    except AttributeError as error:
        if not boot["main"]:
            raise
        raise NotSendableError(
            f"the process has run the main file and has not found what it needs of it: {error}; "
            'define it at the top level, not under `if __name__ == "__main__":`'
        ) from error
    return found


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether a function is to be run in an event loop."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if inspect.iscoroutinefunction(fn):
        return True
    return inspect.iscoroutinefunction(type(fn).__call__)
