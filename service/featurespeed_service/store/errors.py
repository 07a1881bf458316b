"""What every method of a store may raise."""

from __future__ import annotations

from types import MappingProxyType


class StoreError(Exception):
    """Base of everything that a store refuses."""


class StoreUnavailable(StoreError):
    """The database cannot be reached now, or did not answer in time; what was asked may have been done all the same.

    Any method of a store may raise it. Asking again is safe: a write that was done is found done.
    """

    headers = MappingProxyType({"Retry-After": "1"})


class StoreFull(StoreUnavailable):
    """The database has no room left for this."""
