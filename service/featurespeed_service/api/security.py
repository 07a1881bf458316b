"""Who asks, and what they may do: every route that reaches jobs or datasets gets them through an :class:`Access`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer

from featurespeed_service.api.context import Context, Ctx
from featurespeed_service.api.datasets import DatasetLibrary
from featurespeed_service.api.limits import RequestLimits
from featurespeed_service.api.refusals import Forbidden, Unauthenticated
from featurespeed_service.store.interface import JobStore
from featurespeed_service.store.keys import ApiKey, Grant, InvalidToken, KeyStore, Scope, parse_token
from featurespeed_service.store.schema import LOCAL_TENANT

BEARER = HTTPBearer(auto_error=False, scheme_name="API key", description="fsk_…, as an operator has made it")
"""Only says in the OpenAPI document which routes take a key: who has one is the gate's to say."""

KEY_CACHE_SECONDS = 2.0
"""How long a key is taken to be what it was: a revoked one stops within this time."""
CACHED_KEYS = 1024


class KeyRing:
    """API keys as the store has them, remembered for KEY_CACHE_SECONDS.

    Remembered by id and only if the id exists: invented ids push nothing out, and a wrong secret costs no query.
    """

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._known: dict[str, tuple[float, ApiKey]] = {}

    async def key_of(self, authorization: str | None) -> ApiKey:
        """The key of a header ``Authorization: Bearer fsk_…``; raises Unauthenticated."""
        if authorization is None:
            raise Unauthenticated("an API key is needed: Authorization: Bearer fsk_…")
        scheme, _, token = authorization.partition(" ")
        try:
            key_id, secret = parse_token(token.strip() if scheme.lower() == "bearer" else "")
        except InvalidToken:
            raise Unauthenticated("Authorization should be: Bearer fsk_<id>_<secret>") from None
        key = await self._find(key_id)
        if key is None or not key.opens_with(secret):
            raise Unauthenticated("the API key is unknown, wrong or revoked")
        return key

    async def _find(self, key_id: str) -> ApiKey | None:
        until, known = self._known.get(key_id, (0.0, None))
        if known is not None and time.monotonic() < until:
            return known
        asked_at = time.monotonic()  # before the store is asked: the age counts from what it then says
        found = await run_in_threadpool(self._keys.find, key_id)
        if found is not None:
            if len(self._known) >= CACHED_KEYS and key_id not in self._known:
                self._known.pop(next(iter(self._known)))
            self._known[key_id] = (asked_at + KEY_CACHE_SECONDS, found)
        return found


@dataclass(frozen=True)
class Access:
    """What one request may reach: the jobs and the datasets of its tenant, and no others."""

    tenant: str
    store: JobStore
    datasets: DatasetLibrary
    recheck: Callable[[], Awaitable[None]]
    """Raises Unauthenticated or Forbidden if the request would be refused by now; for answers that take long."""


class Gate:
    """Lets requests in: by API key, or where none are required, everybody as the tenant ``local``."""

    def __init__(self, keys: KeyStore, *, required: bool) -> None:
        self.required = required
        self._ring = KeyRing(keys)
        self._limits = RequestLimits()

    async def admit(self, authorization: str | None, scope: Scope) -> Grant:
        """What the request is allowed, counting it; raises Unauthenticated, Forbidden, RateLimited."""
        if not self.required:
            return Grant(LOCAL_TENANT)
        key = await self._ring.key_of(authorization)
        if key.grant.requests_per_minute is not None:
            self._limits.count(key.id, key.grant.requests_per_minute)
        _check(key, scope)
        return key.grant

    async def recheck(self, authorization: str | None, scope: Scope) -> None:
        """The same without counting it: whether what was allowed still is."""
        if self.required:
            _check(await self._ring.key_of(authorization), scope)


def _check(key: ApiKey, scope: Scope) -> None:
    if scope not in key.grant.scopes:
        raise Forbidden(f"this needs the scope {scope}; the key has {', '.join(key.grant.scopes) or 'none'}")


def _access(scope: Scope) -> Callable[[Request, Context, object], Awaitable[Access]]:
    async def admitted(request: Request, context: Ctx, _: Annotated[object, Depends(BEARER)]) -> Access:
        authorization = request.headers.get("authorization")
        grant = await context.gate.admit(authorization, scope)
        request.state.tenant = grant.tenant  # for log and trace
        store = context.every_tenant.of_tenant(grant.tenant, grant.max_active_jobs)
        datasets = DatasetLibrary(store.datasets, context.settings.datasets_dir)
        return Access(grant.tenant, store, datasets, lambda: context.gate.recheck(authorization, scope))

    return admitted


Reading = Annotated[Access, Depends(_access("jobs:read"))]
Writing = Annotated[Access, Depends(_access("jobs:write"))]
Watching = Annotated[Access, Depends(_access("metrics:read"))]
