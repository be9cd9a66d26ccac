"""Small requests travel together: while a call to a tower is under way, others wait for the next.

A call between deployments costs the Router one to two milliseconds of processor time whatever it
carries, and a short query takes a tower less than that. So calls, not tokens, would be the limit.
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

SMALL_SHARE = 1 / 8  # of a full chunk: from here on a chunk goes by itself, at once
MAX_CALLS = 1  # under way before small chunks wait; 2 gave 15% fewer queries per second
MAX_WAIT_S = 0.003  # about the processor time of two calls; a slow answer holds nobody up longer


@dataclass(eq=False, slots=True)
class Caller(Generic[C, R]):
    """One caller's chunk, the share of a full chunk that it takes, and its answer to come."""

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
    """Sends chunks of one lane to a tower, small ones together while calls are under way.

    Nothing waits while fewer than `max_calls` small calls are under way. After that a small chunk
    waits until one of them is answered, or `max_wait_s`, twice as long for each call more that is
    under way, and goes out in one call with the others that wait, up to the cost of a full chunk.

    Args:
        send: one call with several chunks; gives one answer for each, in order. An answer that is
            an EmbeddingError is raised to its own caller only.
        max_calls: small calls under way before others wait.
        max_wait_s: longest wait while `max_calls` are under way, for when the answers are slow.
    """

    def __init__(
        self,
        send: Callable[[Sequence[C]], Awaitable[Sequence[R | EmbeddingError]]],
        max_calls: int = MAX_CALLS,
        max_wait_s: float = MAX_WAIT_S,
    ) -> None:
        self._send = send
        self._max_calls = max_calls
        self._max_wait_s = max_wait_s
        self._waiting: deque[Caller[C, R]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def embed(self, chunk: C, share: float) -> R:
        """Return the answer to a chunk that takes a share of a full one.

        Cancelling it takes the chunk out while it waits. The call that it is in is cancelled with
        the last of its callers.
        """
        if share > SMALL_SHARE:
            (answer,) = await self._send((chunk,))
            return _unless_error(answer)
        loop = asyncio.get_running_loop()
        caller: Caller[C, R] = Caller(chunk, share, loop.create_future(), copy_context())
        self._waiting.append(caller)
        if len(self._under_way) < self._max_calls:
            self._start_call()
        elif self._timer is None:
            # Calls that are slow because there are many get no more of them: each doubles the wait.
            late = len(self._under_way) - self._max_calls
            self._timer = loop.call_later(self._max_wait_s * 2**late, self._overdue)
        return await caller.answer

    def _overdue(self) -> None:
        """Send all that waits: the answers take long."""
        self._timer = None
        while self._waiting:
            self._start_call()

    def _start_call(self) -> None:
        """Send what waits in one call, oldest first, up to the cost of a full chunk."""
        callers = self._next_callers()
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not callers:
            return
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
        room = 1.0
        while self._waiting and (not callers or self._waiting[0].share <= room):
            caller = self._waiting.popleft()
            if not caller.answer.done():  # else it has left
                callers.append(caller)
                room -= caller.share
        return callers

    async def _call(self, callers: Sequence[Caller[C, R]]) -> None:
        """Make the call and give each caller its own answer; every one of them hears."""
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
            for caller, answer in answered:
                caller.settle(answer)

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._under_way.discard(call)
        if self._waiting and len(self._under_way) < self._max_calls:
            self._start_call()


def _unless_error(answer: R | EmbeddingError) -> R:
    if isinstance(answer, EmbeddingError):
        raise answer
    return answer
