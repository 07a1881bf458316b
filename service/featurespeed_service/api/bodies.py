"""How the body of a request is read: within a number of bytes and a time, and only after the request was let in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from fastapi import Request

from featurespeed.contract import FieldError, SpecError
from featurespeed_service.api.context import Ctx
from featurespeed_service.api.problems import BodyTooLarge
from featurespeed_service.api.refusals import BodyTooSlow
from featurespeed_service.api.security import Writing

LARGE_BYTES = 2**14
"""Of a spec: larger ones take turns, as told in Context."""
SLOWEST_BYTES_PER_SECOND = 250_000
"""A large body has, beyond ``body_seconds``, the time that the largest one takes at this speed."""


async def limited_body(request: Request, limit: int, seconds: float) -> AsyncIterator[bytes]:
    """The body in pieces; raises BodyTooLarge once it has more than ``limit`` bytes, BodyTooSlow if it takes longer."""
    size, end = 0, asyncio.get_running_loop().time() + seconds
    pieces = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(end):
                piece = await anext(pieces, None)
        except TimeoutError:
            raise BodyTooSlow(seconds) from None
        if piece is None:
            break
        size += len(piece)
        if size > limit:  # what follows is for the protocol to read, or not
            raise BodyTooLarge(limit)
        yield piece


async def spec_body(request: Request, context: Ctx, access: Writing) -> AsyncIterator[str]:
    """The text of a request that carries a spec; raises BodyTooLarge, BodyTooSlow, and SpecError if it is not UTF-8.

    Large ones take turns, from their first LARGE_BYTES until the request has been dealt with.
    """
    settings, whole = context.settings, bytearray()
    body = limited_body(request, settings.max_spec_bytes, settings.body_seconds)
    async with AsyncExitStack() as turn:
        async for piece in body:
            if len(whole) <= LARGE_BYTES < len(whole) + len(piece):
                try:
                    async with asyncio.timeout(settings.body_seconds):
                        await turn.enter_async_context(context.large_bodies)
                except TimeoutError:
                    raise BodyTooSlow(settings.body_seconds) from None
            whole += piece
        yield _text(whole)


def _text(body: bytearray) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        bound = f"must be JSON in UTF-8 (byte {error.start} is not)"
        raise SpecError([FieldError(field="body", value=None, bound=bound)]) from None


def file_body(request: Request, context: Ctx, access: Writing) -> AsyncIterator[bytes]:
    """The bytes of an upload, in pieces; reading them may raise BodyTooLarge and BodyTooSlow."""
    limit = context.settings.max_dataset_bytes
    return limited_body(request, limit, context.settings.body_seconds + limit / SLOWEST_BYTES_PER_SECOND)
