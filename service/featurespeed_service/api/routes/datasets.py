"""Datasets: content-addressed uploads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from featurespeed_service.api.bodies import dataset_body
from featurespeed_service.api.problems import declared
from featurespeed_service.api.security import Writing

Upload = Annotated[AsyncIterator[bytes], Depends(dataset_body)]
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
async def put(access: Writing, body: Upload, response: Response, sha256: Sha256) -> dict[str, str]:
    """Store a safetensors file with tensors ``inputs`` and ``targets`` under its SHA-256."""
    if not await access.datasets.add(sha256, body):
        response.status_code = 200
    return {"sha256": sha256}
