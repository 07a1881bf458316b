"""When and how often a request is sent again: every number of the client's patience is here.

All requests may be repeated: reading and PUT by nature, a submission by its Idempotency-Key, cancel, retry and delete
because doing them twice is doing them once.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from featurespeed.errors import DeadlineExceeded

RETRY_STATUSES = frozenset({429, 502, 503, 504})
"""Answers that mean: later."""

REQUEST_TIMEOUT = 30.0
"""Seconds that one request may wait between two pieces of an answer, unless the user says otherwise."""

CONNECT_TIMEOUT = 5.0
"""Seconds that making a connection may take."""

STREAM_SILENCE = 45.0
"""Seconds without a byte after which an event stream counts as dead: three of the service's keep-alives."""

EMPTY_STREAMS = 5
"""Event streams in a row that may end before their first event; from then on the job is polled."""

POLL_SECONDS = 2.0
"""Longest pause between two looks at a job while there is no event stream."""

CLEANUP_SECONDS = 5.0
"""How long an abandoned wait may take to cancel its job."""

MAX_RETRY_AFTER = 60.0
"""Longest wish of a server (Retry-After) that is followed, in seconds."""


@dataclass(frozen=True)
class Retry:
    """Up to ``attempts`` tries, with pauses of ``base``, 2 ``base``, … up to ``cap`` seconds, shortened at random."""

    attempts: int
    base: float = 0.2
    cap: float = 5.0

    def pause(self, attempt: int, retry_after: str | None = None) -> float:
        """Seconds to wait after failure number ``attempt`` (from 1); the server's wish if that is longer."""
        backoff = min(self.cap, self.base * 2.0 ** min(attempt - 1, 30)) * random.uniform(0.5, 1.0)
        return max(backoff, min(_seconds(retry_after), MAX_RETRY_AFTER))


REQUEST = Retry(attempts=5)
"""One call: about 3 s of patience with a server that refuses connections."""

FOLLOW = Retry(attempts=16)
"""While waiting for a job: about 50 s, enough for a server to be restarted."""


def _seconds(retry_after: str | None) -> float:
    """Retry-After (RFC 9110, 10.2.3) in seconds: a number or a date; 0 for neither."""
    if not retry_after:
        return 0.0
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max(0.0, (when - datetime.now(when.tzinfo or UTC)).total_seconds()) if when.tzinfo else 0.0


class Deadline:
    """A moment up to which something may take; ``None`` seconds: for ever."""

    def __init__(self, seconds: float | None = None, what: str = "the answer") -> None:
        self.seconds = seconds
        self.what = what
        self._end = float("inf") if seconds is None else time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left (infinity without a deadline); raises DeadlineExceeded if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.exceeded()
        return left

    def exceeded(self) -> DeadlineExceeded:
        """The error that says so."""
        return DeadlineExceeded(f"{self.what} was not there within {self.seconds:g} s")

    def limit(self, seconds: float) -> float:
        """At most ``seconds``, and at most what is left; raises DeadlineExceeded if nothing is."""
        return min(seconds, self.remaining())
