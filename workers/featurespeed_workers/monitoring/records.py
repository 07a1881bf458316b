"""What a monitor tells of one step: a line of JSON, or scalars with names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

from pydantic import Field

from featurespeed.contract import LayerMeasurement, Report
from featurespeed.contract.base import Model
from featurespeed.contract.properties import Property
from featurespeed.contract.request import Method
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.network import Network

VERDICTS = ("SP", "FL", "LD", "BC", "FS")
"""The properties of one state that need no second derivative."""
_QUANTITIES = ("angle", "feature_rms", "feature_speed", "backward_rms", "sensitivity", "contribution", "gradient_norm")


class Failure(Model):
    """Why a step could not be measured: ``type`` as MeasurementError has it, or the name of the exception."""

    type: str
    detail: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        """The failure that an exception tells of."""
        kind = error.type if isinstance(error, MeasurementError) else type(error).__name__
        return cls(type=kind, detail=str(error) or type(error).__name__)


class BlockRecord(Model):
    """One block along the step that the optimizer makes now; fields as in LayerMeasurement.

    angle: θ in radians, of the feature's velocity and −b. feature_rms, feature_speed, backward_rms: rms over the cut
    node's coordinates, speed per step. sensitivity: feature_speed ÷ the decay that the blocks up to here contribute.
    contribution: this block's part of ``loss_decay``. gradient_norm: ‖∇_l‖_2. learning_rates: the different ones among
    its parameters that train, ascending, as the optimizer's groups have them now.
    """

    name: str
    angle: float | None
    feature_rms: float | None
    feature_speed: float | None
    backward_rms: float | None
    sensitivity: float | None
    contribution: float | None
    gradient_norm: float | None
    learning_rates: tuple[float, ...]


class Record(Model):
    """One measured step, or with ``error`` one that could not be measured; then nothing else is known of it.

    loss: on the step's batch, before the step. loss_decay: how much of it the step takes, to first order.
    formula_residual: the two sides of the feature speed formula, compared (see docs/science.md). cos_error: what the
    method adds to it, as in a report. verdicts: by the name
    of the property, as in a report. warnings: doubts about the measurement. seconds: what it took, wall time.
    """

    step: int
    seconds: float
    error: Failure | None = None
    loss: float | None = None
    loss_decay: float | None = None
    formula_residual: float | None = None
    method: Method | None = None
    cos_error: float | None = None
    blocks: tuple[BlockRecord, ...] = ()
    verdicts: dict[str, Property] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, step: int, seconds: float, report: Report, network: Network, rates: Mapping[str, float]) -> Self:
        """The record of a report of kind ``measure`` on one seed; ``rates`` are by name of parameter."""
        [measured] = report.measurements
        assert report.properties is not None
        state = report.properties.before
        owned = [sorted({rates[name] for name in block.parameters if name in rates}) for block in network.blocks]
        return cls(
            step=step,
            seconds=seconds,
            loss=measured.loss,
            loss_decay=measured.loss_decay,
            formula_residual=measured.formula_residual,
            method=measured.method,
            cos_error=measured.cos_error,
            blocks=tuple(_block(layer, own) for layer, own in zip(measured.layers, owned, strict=True)),
            verdicts={name: getattr(state, name) for name in VERDICTS},
            warnings=report.warnings,
        )

    def json_line(self) -> str:
        """One line of JSON, without its end; every value of a verdict is that of the one state that was measured."""
        return self.model_dump_json(exclude={"verdicts": {"__all__": {"over_seeds"}}})

    def scalars(self) -> dict[str, float]:
        """Every known number by name: ``loss``, ``angle/<block>``, ``verdict/SP`` (1 holds, 0 does not), …"""
        return {name: float(value) for name, value in self._named() if value is not None}

    def _named(self) -> Iterator[tuple[str, float | None]]:
        yield from (("loss", self.loss), ("loss_decay", self.loss_decay), ("formula_residual", self.formula_residual))
        for block in self.blocks:
            for quantity in _QUANTITIES:
                yield f"{quantity}/{block.name}", getattr(block, quantity)
            yield f"learning_rate/{block.name}", max(block.learning_rates, default=None)
        for name, verdict in self.verdicts.items():
            yield f"verdict/{name}", verdict.holds


def _block(layer: LayerMeasurement, rates: Sequence[float]) -> BlockRecord:
    values = {quantity: getattr(layer, quantity).mean for quantity in _QUANTITIES}
    return BlockRecord(name=layer.name, learning_rates=tuple(r for r in rates if math.isfinite(r)), **values)
