"""Types of parameters that more than one route has."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def _digits(value: Any) -> Any:
    """pydantic alone would take ``+0.0`` for a whole number too."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError("should be a whole number, in digits")
    return value


Whole = Annotated[int, BeforeValidator(_digits)]
"""A whole number in a header or a query."""
