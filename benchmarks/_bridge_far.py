"""The other process: ``python _bridge_far.py MODULE:FUNCTION LOOP DIRECTORY``.

It runs the async function, given how to say that it is ready and a directory for
its sockets, until its own input ends. What it says is printed as a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from importlib import import_module
from typing import Any


def ready(addresses: Any) -> None:
    """Tell whoever has started this where it can be reached."""
    print(json.dumps(addresses), flush=True)


def end_with_input() -> None:
    """Be gone when nobody is there any longer."""
    sys.stdin.buffer.read()
    os._exit(0)


def main(target: str, loop: str, directory: str) -> None:
    module, _, name = target.partition(":")
    serve = getattr(import_module(module), name)
    threading.Thread(target=end_with_input, daemon=True).start()
    if loop == "trio":
        import trio

        trio.run(serve, ready, directory)
        return
    factory = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(ready, directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
