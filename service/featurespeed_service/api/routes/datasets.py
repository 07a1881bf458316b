"""Datasets and checkpoints: content-addressed uploads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response

from featurespeed_service.api.bodies import file_body
from featurespeed_service.api.problems import declared
from featurespeed_service.api.security import Access, Writing
from featurespeed_service.store.datasets import FileKind

Upload = Annotated[AsyncIterator[bytes], Depends(file_body)]
Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

PUT: dict[str, Any] = {
    "status_code": 201,
    "responses": {200: {"description": "Known already"}, **declared("too-large", "invalid-spec", "invalid-request")},
    "openapi_extra": FILE_BODY,
}

router = APIRouter(prefix="/v1", tags=["datasets"])


@router.put("/datasets/{sha256}", **PUT)
async def put_dataset(access: Writing, body: Upload, response: Response, sha256: Sha256) -> dict[str, str]:
    """Store a safetensors file with tensors ``inputs`` and ``targets`` under its SHA-256."""
    return await _put(access, "dataset", body, response, sha256)


@router.put("/checkpoints/{sha256}", **PUT)
async def put_checkpoint(access: Writing, body: Upload, response: Response, sha256: Sha256) -> dict[str, str]:
    """Store a safetensors file with the weights and the optimizer's state of a training under its SHA-256."""
    return await _put(access, "checkpoint", body, response, sha256)


async def _put(access: Access, kind: FileKind, body: Upload, response: Response, sha256: str) -> dict[str, str]:
    if not await access.datasets.add(kind, sha256, body):
        response.status_code = 200
    return {"sha256": sha256}
