"""Three lines tie the parts of an existing asyncio program together.

One part looks prices up, another adds them up. As it was, an unknown article
ended the first, the second waited for the next price for ever, and the program
hung without a word. Now the second is stopped as well, and both say why.

Prints:
    look_up: KeyError('cofee')
    add_up: CascadeCrash(<DeviceID 1>, Failed(KeyError('cofee')))
"""

import asyncio

from backplane import Device

PRICES = {"tea": 3, "coffee": 4, "cake": 5}
ORDER = ["tea", "cake", "cofee", "cake"]


async def look_up(queue: asyncio.Queue[int | None]) -> int:
    for article in ORDER:
        await queue.put(PRICES[article])
    await queue.put(None)
    return len(ORDER)


async def add_up(queue: asyncio.Queue[int | None]) -> int:
    total = 0
    while (price := await queue.get()) is not None:
        total += price
    return total


async def main() -> None:
    queue: asyncio.Queue[int | None] = asyncio.Queue(maxsize=1)
    buyer, cashier = Device("buyer"), Device("cashier")  # new
    buyer.link(cashier)  # new
    # was: parts = look_up(queue), add_up(queue)  # noqa: ERA001
    parts = buyer.manage(look_up, queue), cashier.manage(add_up, queue)  # new
    looked_up, added_up = await asyncio.gather(*parts, return_exceptions=True)
    print(f"look_up: {looked_up!r}\nadd_up: {added_up!r}")


if __name__ == "__main__":
    asyncio.run(main())
