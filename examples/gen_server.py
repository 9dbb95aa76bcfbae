"""Servers in both styles, under a supervisor: one crashes, and another takes its place.

``Account`` has typed methods; ``Counter`` a callback for all messages, as in Erlang. What a
server raises ends it, and its caller is told. ``python gen_server.py [asyncio|trio]``

Prints:
    1. balance 70
    crashed: ValueError('overdrawn by 930')
    2. balance 0
"""

import logging
import sys

import anyio

from backplane import otp
from backplane.supervisor import Supervisor


class Account(otp.GenServer):
    balance = 0

    @otp.on_cast
    def deposit(self, amount: int) -> None:
        self.balance += amount

    @otp.on_call
    def withdraw(self, amount: int) -> int:
        self.balance -= amount
        if self.balance < 0:
            raise ValueError(f"overdrawn by {-self.balance}")
        return self.balance


class Counter(otp.GenServer):
    count = 0

    def handle_call(self, message: object, from_: object) -> str:
        self.count += 1
        return f"{self.count}. balance {message}"


async def main() -> None:
    account = otp.ServerRef("account", Account)  # whoever has the name at the time
    children = [otp.child_spec(Account, name="account"), otp.child_spec(Counter, name="counter")]
    with otp.Registry() as names:
        async with Supervisor(children):
            account.cast(Account.deposit, 100)
            for amount in 30, 1000, 0:
                try:
                    print(await otp.call("counter", await account.call(Account.withdraw, amount)))
                except otp.ServerDownError as error:
                    print("crashed:", repr(error.reason))
                    await names.await_name("account")


if __name__ == "__main__":
    logging.disable()  # it would tell of the crash, too
    anyio.run(main, backend=(sys.argv[1:] or ["asyncio"])[0])
