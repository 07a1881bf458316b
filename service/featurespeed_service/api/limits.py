"""How often a key may ask: a moving window of a minute, kept in this process. N replicas of the API allow N times."""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from featurespeed_service.api.refusals import RateLimited


class RequestLimits:
    """Counts requests by key."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def count(self, key_id: str, per_minute: int) -> None:
        """Count a request; raises RateLimited, and does not count it, if it is one too many."""
        item = RateLimitItemPerMinute(per_minute)
        if not self._limiter.hit(item, key_id):
            free_at, _ = self._limiter.get_window_stats(item, key_id)  # when the oldest request leaves the window
            raise RateLimited(per_minute, max(1, math.ceil(free_at - time.time())))
