"""The report of a recommendation whose κ was refined by probes; and probes for a module of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

from pydantic import ValidationError

from featurespeed.contract import Optimizer, Refine, Report
from featurespeed_workers.measurement import Setting
from featurespeed_workers.passes import Batch, Parameters
from featurespeed_workers.probes import Probed, run_probe
from featurespeed_workers.refinement import Candidate, Probe, candidates, choose, further, in_order, refinement
from featurespeed_workers.seeds import Cell


def refined(
    cells: Sequence[Cell],
    tried: Sequence[Candidate],
    probes: Sequence[Probe],
    *,
    assemble: Callable[[Sequence[Cell]], Report],
) -> Report:
    """The report of the closed form's ``cells`` with every learning rate times the factor that the probes choose.

    ``tried`` is by rising factor; ``probes`` of one candidate are in the seeds' order.
    """
    choice = choose(tried, probes)
    report = assemble([_times(cell, choice.factor) for cell in cells])
    assert report.recommendation is not None
    assert report.recommendation.feature_step is not None
    closed_form = report.recommendation.feature_step
    changed = report.recommendation.model_copy(
        update={
            "feature_step": closed_form * choice.factor,
            "refinement": refinement(tried, probes, choice, closed_form),
        }
    )
    doubts = [choice.warning] if choice.warning else []
    trained = report.evidence is not None or any(m.step > 1 for m in report.measurements)
    if choice.factor != 1 and trained:
        doubts.append(
            f"measurements and losses along training are at the closed form's κ {closed_form:g}, not the refined one"
        )
    return report.model_copy(update={"recommendation": changed, "warnings": (*report.warnings, *doubts)})


def _times(cell: Cell, factor: float) -> Cell:
    """The cell with its master rate δt times ``factor``."""
    assert cell.scaling is not None
    scaling = cell.scaling.model_copy(update={"master_lr": cell.scaling.master_lr * factor})
    after = None if cell.after is None else cell.after.times(factor)
    # its own step is as it was, but is judged by the same κ
    before = cell.before and replace(cell.before, feature_step=cell.before.feature_step * factor)
    return cell.model_copy(update={"scaling": scaling, "before": before, "after": after})


class Probing:
    """The probes of an answer in-process, seed after seed; does nothing without ``refine``."""

    def __init__(self, refine: Refine | None, optimizer: Optimizer | None) -> None:
        self._refine = refine
        self._optimizer = optimizer
        self._starts: list[Probed] = []

    @classmethod
    def of(cls, refine: Refine | int | None, optimizer: Optimizer | None) -> Self:
        """From a number of steps, too; raises ValueError for one out of bounds."""
        if refine is not None and (isinstance(refine, bool) or not isinstance(refine, Refine | int)):
            raise ValueError(f"refine: must be a number of steps or a Refine, got {refine!r}")
        try:
            return cls(Refine(steps=refine) if isinstance(refine, int) else refine, optimizer)
        except ValidationError as error:
            raise ValueError(f"refine: {error.errors()[0]['msg']}, got {refine}") from None

    @property
    def batches(self) -> int:
        """How many batches the next seed's probes take: none once enough seeds have theirs."""
        return self._open.steps - 1 if self._open else 0  # the last step sees the first one's again

    def start_from(self, setting: Setting, parameters: Parameters, cell: Cell, batches: Sequence[Batch]) -> None:
        """Probes are to start from ``cell``'s answer, with ``batches`` over and over if they are too few."""
        if self._open is None or self._optimizer is None:
            return
        assert cell.scaling is not None
        self._starts.append(
            Probed(
                setting, parameters, cell.scaling, self._optimizer, lambda step: batches[step % len(batches)], cell.seed
            )
        )

    @property
    def _open(self) -> Refine | None:
        """What is asked of the next seed; ``None`` if enough seeds have their probes."""
        return self._refine if self._refine and len(self._starts) < self._refine.seeds else None

    def refined(self, cells: Sequence[Cell], assemble: Callable[[Sequence[Cell]], Report]) -> Report:
        """The report, as :func:`refined` makes it."""
        if self._refine is None:
            return assemble(cells)
        first = candidates(self._refine)
        probes = self._probes(first, self._refine.steps)
        second = further(self._refine, probes)
        probes += self._probes(second, self._refine.steps)
        return refined(cells, in_order([*first, *second]), probes, assemble=assemble)

    def _probes(self, tried: Sequence[Candidate], steps: int) -> list[Probe]:
        return [run_probe(start, candidate, steps) for candidate in tried for start in self._starts]
