"""What a request is refused for before it is looked at: who asks, how often, how slowly.

``headers``, where there are some, go with the answer.
"""

from __future__ import annotations

from types import MappingProxyType


class Unauthenticated(Exception):
    """No valid API key came with the request."""

    headers = MappingProxyType({"WWW-Authenticate": 'Bearer realm="featurespeed"'})


class Forbidden(Exception):
    """The key, or the place that the request comes from, does not allow this."""


class RateLimited(Exception):
    """The key has asked as often as it may."""

    def __init__(self, limit: int, seconds: int) -> None:
        super().__init__(f"this key may ask {limit} times a minute; ask again in {seconds} s")
        self.headers = {"Retry-After": str(seconds)}


class BodyTooSlow(Exception):
    """A request body did not arrive in time."""

    headers = MappingProxyType({"Connection": "close"})

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body was not there within {seconds:g} s, the limit here")
