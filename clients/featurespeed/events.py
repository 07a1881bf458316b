"""What a running job says, and how it is read from the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from featurespeed.contract.base import Model
from featurespeed.contract.job import TERMINAL, Job, MeasurementEvent, Progress, Status

if TYPE_CHECKING:
    from httpx_sse import ServerSentEvent  # not at run time: an answer without a server needs no httpx


class StatusEvent(Model):
    """A job's new status."""

    status: Status

    @property
    def is_last(self) -> bool:
        """Whether the job has ended."""
        return self.status in TERMINAL


Event = StatusEvent | Progress | MeasurementEvent
"""What :meth:`featurespeed.Job.events` gives."""

_MODELS: dict[str, type[StatusEvent] | type[Progress] | type[MeasurementEvent]] = {
    "status": StatusEvent,
    "progress": Progress,
    "measurement": MeasurementEvent,
}


def parse_event(message: ServerSentEvent) -> Event | None:
    """One server-sent event as an Event; ``None`` if it is of a kind that this version does not know."""
    model = _MODELS.get(message.event)
    if model is None:
        return None
    try:
        return model.model_validate_json(message.data, extra="ignore")
    except ValidationError:  # a newer server's; the job's own state is asked for in the end anyhow
        return None


class Seen:
    """What of a job has been told already, so that a look at it adds only what is new."""

    def __init__(self) -> None:
        self.last: dict[type, Event] = {}

    def is_new(self, event: Event) -> bool:
        """Whether the event says anything new; it counts as told from now on."""
        if isinstance(event, MeasurementEvent):
            return True
        known = self.last.get(type(event)) == event
        self.last[type(event)] = event
        return not known

    def changes(self, job: Job) -> list[Event]:
        """The events that lie between what has been told and the job as it is now."""
        return [event for event in (job.progress, StatusEvent(status=job.status)) if self.is_new(event)]
