"""The asynchronous client against the real service: what differs from the blocking one is I/O and cancellation."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from featurespeed import AsyncClient, DeadlineExceeded, ServerUnreachable
from featurespeed.events import Event, StatusEvent
from tests.client.live import LiveService, meanwhile
from tests.client.reports import SPEC, report


def run(service: LiveService, test: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncClient(service.url) as client:
            await test(client)

    asyncio.run(main())


def test_recommend(service: LiveService) -> None:
    async def test(client: AsyncClient) -> None:
        events: list[Event] = []
        assert await client.recommend(SPEC, on_event=events.append, timeout=20) == report()
        assert events[-1] == StatusEvent(status="succeeded")

    with meanwhile(service.succeed):
        run(service, test)


def test_events_jobs_and_the_rest(service: LiveService, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(1_000_001))

    async def test(client: AsyncClient) -> None:
        job = await client.submit(SPEC)
        events = [event async for event in job.events(timeout=20)]
        assert events[-1] == StatusEvent(status="succeeded")
        assert await job.result() == report()
        assert job.id in [found.id async for found in client.jobs(status="succeeded")]
        await job.delete()
        assert (await client.schema()).keys() >= {"JobRequest"}
        with pytest.raises(Exception, match="bytes"):
            await client.upload_dataset(tmp_path / "large")

    with meanwhile(service.succeed):
        run(service, test)


def test_many_waits_at_once(service: LiveService) -> None:
    async def test(client: AsyncClient) -> None:
        reports = await asyncio.gather(*(client.recommend(SPEC, timeout=20) for _ in range(4)))
        assert reports == [report()] * 4

    def work() -> None:
        for _ in range(4):
            service.succeed()

    with meanwhile(work):
        run(service, test)


def test_deadline_is_kept_while_the_stream_is_silent(service: LiveService) -> None:
    async def test(client: AsyncClient) -> None:
        job = await client.submit(SPEC)
        with anyio.fail_after(5), pytest.raises(DeadlineExceeded):
            await job.wait(timeout=0.5)
        await job.cancel()

    run(service, test)


def test_cancelling_the_task_cancels_the_job(service: LiveService) -> None:
    async def test(client: AsyncClient) -> None:
        started = asyncio.Event()

        def on_event(event: Event) -> None:
            if isinstance(event, StatusEvent) and event.status == "running":
                started.set()

        task = asyncio.create_task(client.recommend(SPEC, on_event=on_event))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (job,) = [job async for job in client.jobs()][:1]
        with anyio.fail_after(10):
            while (await job.refresh()).status != "cancelled":
                await asyncio.sleep(0.02)

    with meanwhile(service.confirm_cancel):
        run(service, test)


def test_unreachable() -> None:
    async def test() -> None:
        async with AsyncClient("http://127.0.0.1:1") as client:
            with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"):
                await client.schema()

    asyncio.run(test())
