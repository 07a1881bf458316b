"""What methods of a store raise."""

from __future__ import annotations

from types import MappingProxyType

from featurespeed.contract import Job


class StoreError(Exception):
    """Base of everything that a store refuses."""


class StoreUnavailable(StoreError):
    """The database cannot be reached now, or did not answer in time; what was asked may have been done all the same.

    Any method of a store may raise it. Asking again is safe: a write that was done is found done.
    """

    headers = MappingProxyType({"Retry-After": "1"})


class StoreFull(StoreUnavailable):
    """The database has no room left for this."""


class JobNotFound(StoreError):
    """No job has this id."""


class InvalidCursor(StoreError):
    """The cursor of a listing was not made by this store."""


class IdempotencyConflict(StoreError):
    """The idempotency key was used before, with another request."""


class KeyOfDeletedJob(StoreError):
    """The idempotency key was used before, and its job has been deleted since: it makes no second one."""


class WrongStatus(StoreError):
    """The job's status does not allow what was asked; ``job`` is the job as it is."""

    def __init__(self, job: Job, message: str) -> None:
        super().__init__(message)
        self.job = job


class QuotaExceeded(StoreError):
    """The tenant has as many queued and running jobs as it may."""

    headers = MappingProxyType({"Retry-After": "5"})
    """When to try again: a guess, as nobody knows when a job will end."""

    def __init__(self, active: int, limit: int) -> None:
        super().__init__(f"{active} jobs are queued or running, and this key allows {limit}")


class LeaseLost(StoreError):
    """The job is no longer this attempt's: stop working on it, and write nothing."""
