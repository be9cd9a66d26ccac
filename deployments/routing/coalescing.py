"""Requests travel together: while a call to a tower is under way, others wait for the next.

A call between deployments costs the Router and the tower a millisecond or two of processor time
each, whatever it carries. A GPU is done with a short query sooner than that, and with 32 short
texts: calls, not tokens, would be the limit.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Generic, TypeVar

from deployments.errors import TowerUnavailableError
from deployments.model.errors import EmbeddingError

C = TypeVar("C")
R = TypeVar("R")

ALONE_SHARE = 1 / 2  # of a full call: a chunk above it goes at once, another would hardly fit
MAX_CALLS = 1  # under way before chunks wait; 2 gave 15% fewer queries per second
LEAST_WAIT_S = 0.003  # about the processor time of two calls
MOST_WAIT_S = 0.05  # however long the answers take: a tower may be starting
TINY = 1e-9  # sums of shares are inexact


@dataclass(eq=False, slots=True)
class Caller(Generic[C, R]):
    """One caller's chunk, the share of a full call that it takes, and its answer to come."""

    chunk: C
    share: float
    answer: asyncio.Future[R]
    context: Context

    def settle(self, answer: R | Exception) -> None:
        """Give the caller its answer, if it is still there."""
        if self.answer.done():
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class Coalescer(Generic[C, R]):
    """Sends chunks of one lane and size to a tower, together while calls are under way.

    Nothing waits while fewer than `max_calls` are under way. After that a chunk waits until fewer
    are, those that wait fill a call, or half the time has passed that the last call spent on the
    way and in queues. So an idle tower gets its work at once, and a busy one, which could not begin
    sooner, gets it in few large calls.

    Args:
        send: one call with several chunks; gives one answer for each, in order. An answer that is
            an EmbeddingError is raised to its own caller only.
        device_s: how long the device worked for an answer.
        max_calls: calls under way before others wait.
        least_wait_s, most_wait_s: bounds of the wait.
    """

    def __init__(
        self,
        send: Callable[[Sequence[C]], Awaitable[Sequence[R | EmbeddingError]]],
        device_s: Callable[[R], float],
        max_calls: int = MAX_CALLS,
        least_wait_s: float = LEAST_WAIT_S,
        most_wait_s: float = MOST_WAIT_S,
    ) -> None:
        self._send = send
        self._device_s = device_s
        self._max_calls = max_calls
        self._least_wait_s = least_wait_s
        self._most_wait_s = most_wait_s
        self._idle_s = 0.0  # that the last call spent in queues and on the way
        self._waiting: deque[Caller[C, R]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def embed(self, chunk: C, share: float) -> R:
        """Return the answer to a chunk that takes a share of a full call.

        Cancelling it takes the chunk out while it waits. The call that it is in is cancelled with
        the last of its callers.
        """
        loop = asyncio.get_running_loop()
        caller: Caller[C, R] = Caller(chunk, share, loop.create_future(), copy_context())
        if share > ALONE_SHARE:
            self._start_call([caller])
            return await caller.answer
        self._waiting.append(caller)
        full = sum(waiting.share for waiting in self._waiting) > 1 - TINY
        if full or len(self._under_way) < self._max_calls:
            self._send_waiting()
        if self._waiting and self._timer is None:
            wait_s = min(max(self._idle_s / 2, self._least_wait_s), self._most_wait_s)
            self._timer = loop.call_later(wait_s, self._overdue)
        return await caller.answer

    def _overdue(self) -> None:
        """Send all that waits: the answers take long."""
        self._timer = None
        while self._waiting:
            self._send_waiting()

    def _send_waiting(self) -> None:
        """Send what waits in one call, oldest first, as many as fit."""
        callers = self._next_callers()
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if callers:
            self._start_call(callers)

    def _start_call(self, callers: list[Caller[C, R]]) -> None:
        # Ray Serve cancels the calls made in a request's context when its client leaves, so a
        # call for several callers is made in none of theirs.
        context = callers[0].context if len(callers) == 1 else Context()
        call = asyncio.create_task(self._call(callers), context=context)
        self._under_way.add(call)
        call.add_done_callback(self._ended)

        def cancel_if_all_left(_: asyncio.Future[R]) -> None:
            if all(caller.answer.cancelled() for caller in callers):
                call.cancel()

        for caller in callers:
            caller.answer.add_done_callback(cancel_if_all_left)

    def _next_callers(self) -> list[Caller[C, R]]:
        callers: list[Caller[C, R]] = []
        room = 1 + TINY
        while self._waiting and (not callers or self._waiting[0].share <= room):
            caller = self._waiting.popleft()
            if not caller.answer.done():  # else it has left
                callers.append(caller)
                room -= caller.share
        return callers

    async def _call(self, callers: Sequence[Caller[C, R]]) -> None:
        """Make the call and give each caller its own answer; every one of them hears."""
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        try:
            answers = await self._send([caller.chunk for caller in callers])
            answered = list(zip(callers, answers, strict=True))
        except asyncio.CancelledError:
            # Where the last caller left, nobody hears this; else the call was ended from outside.
            for caller in callers:
                caller.settle(
                    TowerUnavailableError("the call to the tower was ended; retry shortly")
                )
            raise
        except Exception as error:  # noqa: BLE001 - the callers are told, whatever it is
            for caller in callers:
                caller.settle(error)
        else:
            worked = [self._device_s(x) for x in answers if not isinstance(x, EmbeddingError)]
            self._idle_s = loop.time() - begin_s - max(worked, default=0.0)
            for caller, answer in answered:
                caller.settle(answer)

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._under_way.discard(call)
        if self._waiting and len(self._under_way) < self._max_calls:
            self._send_waiting()
