"""Server-sent events as a client reads them."""

from typing import NamedTuple

from httpx_sse import EventSource


class SeenEvent(NamedTuple):
    id: str
    event: str
    data: str


def read_events(http, job_id, last_event_id=None):
    """All events of a job until its stream ends."""
    headers = {"Last-Event-ID": str(last_event_id)} if last_event_id is not None else {}
    with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        answer.raise_for_status()
        return [SeenEvent(event.id, event.event, event.data) for event in EventSource(answer).iter_sse()]
