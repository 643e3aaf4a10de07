from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from serving_stand_in.batching import Arrays, Batcher, Batching
from serving_stand_in.errors import Code, ServingError


class Doubler:
    """A model of one output; while ``open`` is not set its computations wait."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, arrays: Arrays) -> dict[str, np.ndarray]:
        self.sizes.append(len(arrays["x"]))
        assert self.open.wait(10), "nobody opened the model"
        return {"y": arrays["x"] * 2}


def with_batcher(batching: Batching, test: Any) -> Doubler:
    model = Doubler()

    async def run() -> None:
        with ThreadPoolExecutor(batching.num_batch_threads) as executor:
            work: Coroutine[Any, Any, None] = test(Batcher(model, batching, executor), model)
            try:
                await asyncio.wait_for(work, 20)
            finally:
                model.open.set()

    asyncio.run(run())
    return model


def rows(*values: float) -> Arrays:
    return {"x": np.array(values, dtype=np.float32)}


def test_requests_that_wait_for_a_thread_share_a_computation():
    async def test(batcher: Batcher, model: Doubler) -> None:
        model.open.clear()
        first = asyncio.create_task(batcher.submit(rows(0)))
        while not model.sizes:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.submit(rows(n, n + 0.5))) for n in range(1, 5)]
        await asyncio.sleep(0)
        model.open.set()
        assert (await first)["y"].tolist() == [0]
        for n, other in enumerate(others, start=1):
            assert (await other)["y"].tolist() == [2 * n, 2 * n + 1]

    model = with_batcher(Batching(num_batch_threads=1), test)
    assert model.sizes == [1, 8]


def test_large_request_is_refused_or_split():
    async def refused(batcher: Batcher, _model: Doubler) -> None:
        with pytest.raises(ServingError, match="Task size 5 is larger than maximum .* size 4"):
            await batcher.submit(rows(1, 2, 3, 4, 5))

    with_batcher(Batching(max_batch_size=4, max_execution_batch_size=4), refused)

    async def split(batcher: Batcher, _model: Doubler) -> None:
        answer = await batcher.submit(rows(1, 2, 3, 4, 5))
        assert answer["y"].tolist() == [2, 4, 6, 8, 10]

    batching = Batching(max_batch_size=8, max_execution_batch_size=2, num_batch_threads=1)
    assert with_batcher(batching, split).sizes == [2, 2, 1]


def test_full_queue_is_unavailable():
    async def test(batcher: Batcher, model: Doubler) -> None:
        model.open.clear()
        tasks = [asyncio.create_task(batcher.submit(rows(1)))]
        while not model.sizes:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(batcher.submit(rows(1))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ServingError, match="queue .* is full") as raised:
            await batcher.submit(rows(1))
        assert raised.value.code is Code.UNAVAILABLE
        model.open.set()
        await asyncio.gather(*tasks)

    limits = Batching(
        max_batch_size=1,
        max_execution_batch_size=1,
        max_enqueued_batches=2,
        num_batch_threads=1,
    )
    with_batcher(limits, test)


def test_request_of_another_shape_fails_the_batch_as_on_the_official_server():
    async def test(batcher: Batcher, model: Doubler) -> None:
        model.open.clear()
        first = asyncio.create_task(batcher.submit(rows(0)))
        while not model.sizes:
            await asyncio.sleep(0.001)
        wide = {"x": np.zeros((1, 3), dtype=np.float32)}
        others = [asyncio.create_task(batcher.submit(one)) for one in (rows(1), wide)]
        await asyncio.sleep(0)
        model.open.set()
        await first
        for other in others:
            with pytest.raises(ServingError, match="from different tasks have different shapes"):
                await other
        assert (await batcher.submit(rows(3)))["y"].tolist() == [6]

    with_batcher(Batching(num_batch_threads=1), test)
