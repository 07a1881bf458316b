"""A small request that can be refined."""

from __future__ import annotations

from typing import Any

MLP = {"family": "mlp", "input_dim": 64, "width": 32, "depth": 3, "output_dim": 10, "bias": True}


def spec(refine: dict[str, Any] | None = None, **scaling: Any) -> dict[str, Any]:
    """Kind ``recommend`` under seeds 0 and 3; a new document each time."""
    return {
        "kind": "recommend",
        "architecture": MLP,
        "data": {"kind": "digits", "batch_size": 64},
        "loss": "cross_entropy",
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "scaling": {**scaling, **({"refine": refine} if refine else {})},
        "measurement": {"seeds": [0, 3], "dtype": "float64"},
    }
