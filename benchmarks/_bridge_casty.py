"""What both nodes of casty have to know, by the same names."""

from __future__ import annotations

from dataclasses import make_dataclass
from importlib import import_module
from typing import Any

from _bridge_work import Counter

casty: Any = import_module("casty")


def message(name: str, *bases: Any, **fields: type) -> Any:
    return make_dataclass(
        name, fields.items(), bases=bases, frozen=True, namespace={"__module__": __name__}
    )


FIELDS: dict[str, type] = {"op": str, "key": str, "n": int}
Question = message("Question", casty.Askable[int], **FIELDS)
HowMany = message("HowMany", casty.Askable[int])
Told = message("Told", **FIELDS)


def actor(body: Any) -> Any:
    body.__annotations__["ctx"] = casty.Context[int, Question | HowMany | Told]
    return casty.actor(initial=0)(body)


@actor
async def server(ctx: Any) -> None:
    counter = Counter()
    async for it in ctx.inbox:
        if type(it) is Told:
            counter.take({"op": it.op, "key": it.key, "n": it.n})
        elif type(it) is Question:
            it.reply_to.tell(it.n + 1)
        else:
            it.reply_to.tell(counter.told)
