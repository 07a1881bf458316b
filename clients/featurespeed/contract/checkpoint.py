"""Checkpoint: the weights and the optimizer's state at which a question is asked."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from featurespeed.contract.base import Model


class Checkpoint(Model):
    """An uploaded safetensors file, addressed by its SHA-256: tensors of the architecture, and of the optimizer.

    ``featurespeed_workers.save_checkpoint`` writes it. A specification on disk may say ``path`` instead of ``sha256``:
    the command line uploads the file.
    """

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
