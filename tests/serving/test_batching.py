"""Questions of many are answered together, each by its own answer."""

import asyncio
from collections.abc import Sequence
from threading import Event

import pytest

from src.serving.batching import Batcher


class Squares:
    """Answers when it may, and keeps the batches it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.may = Event(), Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append([*numbers])
        self.begun.set()
        assert self.may.wait(60)
        if 13 in numbers:
            raise ValueError("thirteen")
        return [number**2 for number in numbers]


async def ask_behind(squares: Squares, batcher: Batcher[int, int], numbers: Sequence[int]) -> list[asyncio.Task[int]]:
    """Ask `numbers` while the thread is busy with a 0."""
    first = asyncio.create_task(batcher.ask(0))
    while not squares.begun.is_set():
        await asyncio.sleep(0.001)
    tasks = [asyncio.create_task(batcher.ask(number)) for number in numbers]
    await asyncio.sleep(0)
    return [first, *tasks]


def test_what_waits_is_answered_together() -> None:
    squares = Squares()
    batcher = Batcher(squares, 4)

    async def talk() -> list[int]:
        tasks = await ask_behind(squares, batcher, range(1, 11))
        squares.may.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(talk()) == [number**2 for number in range(11)]
    assert squares.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    batcher.close()


def test_who_has_gone_takes_no_place() -> None:
    squares = Squares()
    batcher = Batcher(squares, 2)

    async def talk() -> list[int]:
        tasks = await ask_behind(squares, batcher, [1, 2, 3])
        tasks[1].cancel()
        await asyncio.sleep(0)
        squares.may.set()
        return await asyncio.gather(tasks[0], *tasks[2:])

    assert asyncio.run(talk()) == [0, 4, 9]
    assert squares.batches == [[0], [2], [3]]
    batcher.close()


def test_an_error_is_that_of_its_batch_alone() -> None:
    squares = Squares()
    batcher = Batcher(squares, 2)

    async def talk() -> list[int | BaseException]:
        tasks = await ask_behind(squares, batcher, [12, 13, 14])
        squares.may.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *errors, last = asyncio.run(talk())
    assert (first, last) == (0, 196)
    assert [str(error) for error in errors] == ["thirteen"] * 2
    batcher.close()


def test_when_closed_the_rest_is_not_begun() -> None:
    squares = Squares()
    batcher = Batcher(squares, 1)

    async def talk() -> None:
        tasks = await ask_behind(squares, batcher, [1, 2])
        batcher.close()
        squares.may.set()
        assert await tasks[0] == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(tasks[1], 0.2)

    asyncio.run(talk())
    assert squares.batches == [[0]]
