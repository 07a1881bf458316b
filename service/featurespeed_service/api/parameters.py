"""What more than one route asks of its parameters."""

from __future__ import annotations

from typing import Any

from pydantic import BeforeValidator


def _digits(value: Any) -> Any:
    """pydantic alone would take ``+0.0`` for a whole number too."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError("should be a whole number, in digits")
    return value


DIGITS = BeforeValidator(_digits)
"""Of a whole number in a header or a query; behind its bounds, which the schema would lack otherwise."""
