"""Requests for one model, put together while they wait for a thread (batching/batching_session.cc)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from serving_stand_in.errors import Code, ServingError, invalid

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Batching:
    """How waiting requests are put together (BatchingParameters), with the official defaults."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 2
    # Instances in one computation; smaller than max_batch_size only when large requests are split.
    max_execution_batch_size: int = 1000
    split: bool = False


@dataclass
class _Task:
    arrays: Arrays
    size: int
    answer: asyncio.Future[dict[str, np.ndarray]]


class Batcher:
    """Runs one signature. Each thread takes all that waits, up to the size of a batch."""

    def __init__(self, run: Run, batching: Batching, executor: Executor) -> None:
        self._run, self._batching, self._executor = run, batching, executor
        self._waiting: deque[_Task] = deque()
        self._size = 0
        self._busy = 0
        self._workers: set[asyncio.Task[None]] = set()

    async def submit(self, arrays: Arrays) -> dict[str, np.ndarray]:
        sizes = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise invalid("Batching session Run() input tensors must have equal 0th-dimension size")
        (size,) = sizes
        limit, most = self._batching.max_batch_size, self._batching.max_execution_batch_size
        if size > limit:
            raise invalid(f"Task size {size} is larger than maximum input batch size {limit}")
        if self._size + size > self._batching.max_enqueued_batches * most:
            raise ServingError(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full",
            )
        parts = [
            self._enqueue({name: array[start : start + most] for name, array in arrays.items()})
            for start in range(0, size, most)
        ]
        answers = await asyncio.gather(*parts)
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def _enqueue(self, arrays: Arrays) -> asyncio.Future[dict[str, np.ndarray]]:
        task = _Task(
            arrays, len(next(iter(arrays.values()))), asyncio.get_running_loop().create_future()
        )
        self._waiting.append(task)
        self._size += task.size
        if self._busy < self._batching.num_batch_threads:
            self._busy += 1
            worker = asyncio.get_running_loop().create_task(self._work())
            # The loop keeps only a weak reference to a task.
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return task.answer

    async def _work(self) -> None:
        try:
            while self._waiting:
                if (
                    self._batching.batch_timeout_micros
                    and self._size < self._batching.max_execution_batch_size
                ):
                    await asyncio.sleep(self._batching.batch_timeout_micros / 1e6)
                batch = self._take()
                if batch:
                    await self._compute(batch)
        finally:
            self._busy -= 1

    def _take(self) -> list[_Task]:
        batch: list[_Task] = []
        size = 0
        while (
            self._waiting
            and size + self._waiting[0].size <= self._batching.max_execution_batch_size
        ):
            task = self._waiting.popleft()
            self._size -= task.size
            if not task.answer.done():  # nobody waits for it any more
                size += task.size
                batch.append(task)
        return batch

    async def _compute(self, batch: list[_Task]) -> None:
        try:
            arrays = _merged(batch)
            answers = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._run, arrays
            )
            total = sum(task.size for task in batch)
            if any(answer.shape[:1] != (total,) for answer in answers.values()):
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                    "dimension sizes of the input tensors",
                )
        except Exception as error:  # whatever it is, those that wait are told
            for task in batch:
                if not task.answer.done():
                    task.answer.set_exception(error)
            return
        start = 0
        for task in batch:
            end = start + task.size
            if not task.answer.done():
                task.answer.set_result(
                    {name: answer[start:end] for name, answer in answers.items()}
                )
            start = end


def _merged(batch: list[_Task]) -> Arrays:
    if len(batch) == 1:
        return batch[0].arrays
    merged = {}
    for name, first in batch[0].arrays.items():
        parts = [task.arrays[name] for task in batch]
        if any(part.shape[1:] != first.shape[1:] for part in parts):
            # So does the official server: one request of another shape fails those beside it.
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f"Tensors with name '{name}' from different tasks have different shapes and padding "
                "is turned off. Set pad_variable_length_inputs to true, or ensure that all tensors "
                "with the same name have equal dimensions starting with the first dim.",
            )
        merged[name] = np.concatenate(parts)
    return merged
