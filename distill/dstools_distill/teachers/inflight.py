"""Requests in flight: sent, perhaps paid for, and not yet answered.

A run that must stop sends nothing more, and waits for what was sent: the server has begun those
answers, and counts their tokens whether or not anyone receives them.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from openai import DefaultAsyncHttpxClient

from dstools_converters.errors import RESUME_HINT, counted

logger = logging.getLogger(__name__)


class Gate(DefaultAsyncHttpxClient):
    """The HTTP client of a run, which knows what is in flight, and sends nothing once stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_seconds: float) -> None:
        super().__init__(follow_redirects=False)
        self.loop, self.timeout_seconds = loop, timeout_seconds
        self.tasks: set[asyncio.Task[Any]] = set()  # that ask for samples; the caller fills it
        self.reason: BaseException | None = None  # why nothing more is sent
        self._in_flight: set[asyncio.Task[Any] | None] = set()

    def is_stopped(self) -> bool:
        """Return whether nothing more is sent."""
        return self.reason is not None

    async def send(self, request: Any, **how: Any) -> Any:
        """Send a request and read the whole reply.

        Once stopped, nothing is sent, nor sent again after an error: the task is cancelled.
        """
        if self.is_stopped():
            raise asyncio.CancelledError
        task = asyncio.current_task()
        self._in_flight.add(task)
        try:
            response = await self._followed(request, how)
        finally:
            self._in_flight.discard(task)
        if self.is_stopped() and not response.is_success:
            raise asyncio.CancelledError  # rather than pause before it would be sent again
        return response

    async def _followed(self, request: Any, how: dict[str, Any]) -> Any:
        """Return the reply after redirects, but for one that would send GET without the body."""
        response = await super().send(request, **how)
        for _ in range(self.max_redirects):
            following = response.next_request
            if following is None or following.method != request.method:
                break
            response = await super().send(following, **how)
        return response

    def stop(self, reason: BaseException) -> None:
        """Send nothing more, and give up after timeout_seconds; the first reason counts.

        Tasks that are about to send, for the first time or again, are cancelled.
        """
        if self.reason is not None:
            return
        self.reason = reason
        for task in self.tasks - self._in_flight:
            task.cancel()
        if self._in_flight:
            self.loop.call_later(self.timeout_seconds, self._give_up)
            logger.warning(
                "stopping: waiting up to %g s for %s in flight, to keep the answers; "
                "Ctrl-C gives them up",
                self.timeout_seconds, counted(len(self._in_flight), "request"),
            )  # fmt: skip

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C stop, and the second one give up what is in flight.

        Otherwise Ctrl-C raises KeyboardInterrupt wherever the process is. That stays so in another
        thread, which no signal reaches, and where someone else handles or ignores the signal.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.loop.add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            self.loop.remove_signal_handler(signal.SIGINT)

    def _interrupt(self) -> None:
        if self.reason is None:
            self.stop(KeyboardInterrupt())
        else:
            self._give_up()

    def _give_up(self) -> None:
        if self._in_flight:
            lost = f"{counted(len(self._in_flight), 'request')} in flight given up"
            if isinstance(self.reason, KeyboardInterrupt):
                self.reason.args = (f"{lost}; {RESUME_HINT}",)
            else:
                logger.warning("%s", lost)
        for task in self.tasks:
            task.cancel()
