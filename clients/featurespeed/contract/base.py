"""What every model of the contract shares: strict types, no unknown fields, no change after validation."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Model(BaseModel):
    """A frozen, strict model: ``true`` is no number, a misspelt field is an error, NaN and infinity are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Dim = Annotated[int, Field(ge=1, le=1_000_000)]
"""A number of coordinates: input, width, output, vocabulary."""

Width = Annotated[int, Field(ge=1, le=65_536)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0, le=1e12)]

MAX_BLOCKS = 4098
"""Of the deepest architecture; with the group ``hidden``, one more name is known."""
BlockName = Annotated[str, Field(max_length=64)]
