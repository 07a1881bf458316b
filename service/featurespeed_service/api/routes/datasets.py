"""Datasets: content-addressed uploads."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from featurespeed_service.api.context import Ctx, limited_body
from featurespeed_service.api.problems import declared

Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
DATASET_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

router = APIRouter(prefix="/v1", tags=["datasets"])


@router.put(
    "/datasets/{sha256}",
    status_code=201,
    responses={200: {"description": "Known already"}, **declared("too-large", "invalid-spec", "invalid-request")},
    openapi_extra=DATASET_BODY,
)
async def put(context: Ctx, request: Request, response: Response, sha256: Sha256) -> dict[str, str]:
    """Store a safetensors file with tensors ``inputs`` and ``targets`` under its SHA-256."""
    body = limited_body(request, context.settings.max_dataset_bytes)
    if not await context.datasets.add(sha256, body):
        response.status_code = 200
    return {"sha256": sha256}
