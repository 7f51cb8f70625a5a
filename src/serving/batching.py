"""Calls of many, answered together by one thread: what waits while it works is its next batch."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Batcher(Generic[Q, A]):
    """One thread that answers questions in batches.

    Args:
        answer: questions to as many answers, in that thread.
        size: questions of a batch, at most.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[A]], size: int) -> None:
        self.answer, self.size = answer, size
        self.waiting: deque[tuple[Q, Future[A]]] = deque()
        self.thread = ThreadPoolExecutor(1)

    async def ask(self, question: Q) -> A:
        """The answer; whoever is cancelled before its turn takes no place in a batch.

        Raises:
            Exception: what `answer` raised for the batch.
        """
        future: Future[A] = Future()
        self.waiting.append((question, future))
        self.thread.submit(self._take)  # finds nothing left where an earlier call took this question too
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Answer nobody any more."""
        self.thread.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> None:
        taken = [self.waiting.popleft() for _ in range(min(self.size, len(self.waiting)))]
        batch = [(question, future) for question, future in taken if future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            answers = self.answer([question for question, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)
