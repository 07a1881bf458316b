"""The science: build a network from a specification, measure it, recommend its scales and rates; and its Ray tasks.

``measure`` and ``recommend`` work in-process on any ``torch.nn.Module``; they load torch when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurespeed_workers.api import measure, recommend
    from featurespeed_workers.checkpoints import load_checkpoint, save_checkpoint
    from featurespeed_workers.errors import MeasurementError
    from featurespeed_workers.found_blocks import blocks
    from featurespeed_workers.modules import network_of
    from featurespeed_workers.monitoring.monitor import FeatureSpeedMonitor

__all__ = [
    "FeatureSpeedMonitor",
    "MeasurementError",
    "blocks",
    "load_checkpoint",
    "measure",
    "network_of",
    "recommend",
    "save_checkpoint",
]

_HOMES = {
    "measure": "api",
    "recommend": "api",
    "save_checkpoint": "checkpoints",
    "load_checkpoint": "checkpoints",
    "network_of": "modules",
    "blocks": "found_blocks",
    "MeasurementError": "errors",
    "FeatureSpeedMonitor": "monitoring.monitor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
