"""Mails: a welcome to who registers, thanks to who pays.

    evworker run shop.notifications

Billing does not know that this plugin exists. When it is down its mails wait in its queues, and
billing goes on.
"""

import smtplib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from zlib import crc32

from evworker.workers import Context, Plugin, Retry, RetryAfter
from shop.events import PaymentProcessed, UserRegistered


class Mailer:
    """Stands in for a mail server; `sent` is all that it delivered."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def send(self, to: str, subject: str) -> None:
        if to.endswith("@nowhere.example"):
            raise smtplib.SMTPRecipientsRefused({to: (550, b"no such mailbox")})
        if to.endswith("@down.example"):
            raise ConnectionRefusedError("the mail server of down.example does not answer")
        self.sent.append((to, subject))


@asynccontextmanager
async def mailer() -> AsyncIterator[Mailer]:
    yield Mailer()


notifications = Plugin("notifications", lifespan=mailer)


@notifications.consumer(
    UserRegistered, retry=Retry("1s", "2s", give_up_on=smtplib.SMTPRecipientsRefused)
)
def welcome(event: UserRegistered, ctx: Context) -> None:
    """A plain function: it may block, as smtplib does, for it runs in a thread."""
    post: Mailer = ctx.state
    post.send(event.email, "Welcome")
    ctx.log.info("mail sent", to=event.email, subject="Welcome")


@notifications.consumer(PaymentProcessed, retry=Retry("1s", "5s"))
async def thank(event: PaymentProcessed, ctx: Context) -> None:
    # Mail servers put strangers off ("greylisting") and say for how long. That is no error of ours,
    # and the wait is theirs to name.
    if ctx.attempt == 1 and crc32(event.order_id.encode()) % 25 == 0:
        raise RetryAfter("2s")
    post: Mailer = ctx.state
    subject = f"We received {event.amount} for order {event.order_id}"
    post.send(f"customer-{event.customer_id}@shop.example", subject)
    ctx.log.info("mail sent", to=event.customer_id, subject=subject)
