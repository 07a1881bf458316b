"""The report of a recommendation whose κ was refined by probes; and probes for a module of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from pydantic import ValidationError

from featurespeed.contract import Optimizer, Refine, Report
from featurespeed_workers.measurement import Setting
from featurespeed_workers.passes import Batch, Parameters
from featurespeed_workers.probes import Probed, run_probe
from featurespeed_workers.refinement import Candidate, Probe, candidates, choose, refinement
from featurespeed_workers.seeds import Cell


def refined(
    cells: Sequence[Cell],
    tried: Sequence[Candidate],
    probes: Sequence[Probe],
    *,
    feature_step: float,
    assemble: Callable[[Sequence[Cell]], Report],
) -> Report:
    """The report of the closed form's ``cells`` with every learning rate times the factor that the probes choose.

    ``feature_step`` is the κ that was asked; ``probes`` of one candidate are in the seeds' order.
    """
    choice = choose(tried, probes)
    report = assemble([_times(cell, choice.factor) for cell in cells])
    assert report.recommendation is not None
    changed = report.recommendation.model_copy(
        update={
            "feature_step": feature_step * choice.factor,
            "refinement": refinement(tried, probes, choice, feature_step),
        }
    )
    doubts = [choice.warning] if choice.warning else []
    if choice.factor != 1 and any(m.step > 1 for m in report.measurements):  # step 1 has its own rate at a zero output
        doubts.append(
            f"measurements and losses along training are at κ {feature_step:g} as asked, not at the refined one"
        )
    return report.model_copy(update={"recommendation": changed, "warnings": (*report.warnings, *doubts)})


def _times(cell: Cell, factor: float) -> Cell:
    """The cell with its master rate δt times ``factor``."""
    assert cell.scaling is not None
    scaling = cell.scaling.model_copy(update={"master_lr": cell.scaling.master_lr * factor})
    after = None if cell.after is None else cell.after.times(factor)
    return cell.model_copy(update={"scaling": scaling, "after": after})


class Probing:
    """The probes of an answer in-process, seed after seed; does nothing without ``refine``."""

    def __init__(self, refine: Refine | None, optimizer: Optimizer | None) -> None:
        self._optimizer = optimizer
        self._tried = candidates(refine) if refine is not None else ()
        self._steps = refine.steps if refine is not None else 0
        self._probes: list[Probe] = []

    @classmethod
    def of(cls, refine: Refine | int | None, optimizer: Optimizer | None) -> Self:
        """From a number of steps, too; raises ValueError for one out of bounds."""
        try:
            return cls(Refine(steps=refine) if isinstance(refine, int) else refine, optimizer)
        except ValidationError as error:
            raise ValueError(f"refine: {error.errors()[0]['msg']}, got {refine}") from None

    @property
    def batches(self) -> int:
        """How many batches the probes of a seed take."""
        return max(0, self._steps - 1)  # the last step sees the first one's again

    def probe(self, setting: Setting, parameters: Parameters, cell: Cell, batches: Sequence[Batch]) -> None:
        """Try all candidates under the seed of ``cell``, with ``batches`` over and over if they are too few."""
        if self._optimizer is None:
            return
        assert cell.scaling is not None
        probed = Probed(
            setting, parameters, cell.scaling, self._optimizer, lambda step: batches[step % len(batches)], cell.seed
        )
        self._probes += [run_probe(probed, candidate, self._steps) for candidate in self._tried]

    def refined(
        self, cells: Sequence[Cell], feature_step: float, assemble: Callable[[Sequence[Cell]], Report]
    ) -> Report:
        """The report, as :func:`refined` makes it."""
        if not self._tried:
            return assemble(cells)
        return refined(cells, self._tried, self._probes, feature_step=feature_step, assemble=assemble)
