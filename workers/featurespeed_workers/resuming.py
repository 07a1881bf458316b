"""A training in its middle: the state from which it goes on, and the cell of a recommendation there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from featurespeed.defaults import PYTORCH_LEARNING_RATE
from featurespeed_workers.balance import Balance
from featurespeed_workers.checkpoints import check_state, read_checkpoint
from featurespeed_workers.measurement import Setting, measure_state
from featurespeed_workers.own_cells import state_cell
from featurespeed_workers.passes import Batch
from featurespeed_workers.recommendation import seed_scaling
from featurespeed_workers.rules.scaling import BlockScaling
from featurespeed_workers.seeds import Cell
from featurespeed_workers.states import Judgement, measured_state, seed_state


@dataclass(frozen=True)
class Resumed:
    """Weights and optimizer of a training: ``setting`` measures along the step that the optimizer takes next.

    ``learning_rates`` are those that it has now, by parameter; empty if they are not known.
    """

    setting: Setting
    learning_rates: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    @property
    def present(self) -> dict[str, float] | None:
        """The learning rates by name, also of blocks, which have none of their own; ``None`` if one is not known."""
        if self._without_rate:
            return None
        return {**dict.fromkeys((block.name for block in self.setting.network.blocks), 0.0), **self.learning_rates}

    @property
    def _without_rate(self) -> list[str]:
        parameters = self.setting.network.module.named_parameters()
        return [name for name, p in parameters if p.requires_grad and name not in self.learning_rates]

    @property
    def doubts(self) -> tuple[str, ...]:
        """``warnings``, and which learning rate is not known: nobody can then tell the pace that features have."""
        if not (missing := self._without_rate):
            return self.warnings
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        doubt = (
            f"the present learning rate of {missing[0]!r}{others} is not known: before, it is taken to be "
            f"{PYTORCH_LEARNING_RATE:g} everywhere; κ, unless given, is the optimizer's default, not the present pace"
        )
        return (*self.warnings, doubt)

    @classmethod
    def of(cls, setting: Setting, learning_rates: Mapping[str, float]) -> Self:
        """From what runs. An optimizer without state begins anew: the step is then the one to which it settles.

        Where it has that of other parameters, one without has had no gradient yet: its step is a first one, as torch's.
        """
        parameters = setting.network.module.named_parameters()
        kept = [name for name, p in parameters if p.requires_grad and setting.rule(name).keeps]
        without = [name for name in kept if not setting.state(name)]
        if not without:
            return cls(setting, learning_rates)
        if len(without) < len(kept):
            others = f" and {len(without) - 1} more" if len(without) > 1 else ""
            doubt = f"the optimizer has no state of {without[0]!r}{others}, but of others: its step is a first one"
            return cls(setting, learning_rates, (doubt,))
        doubt = "the optimizer has no state: rates are for one that begins anew, with a warm-up"
        return cls(setting.sustained(), learning_rates, (doubt,))

    @classmethod
    def from_file(cls, setting: Setting, path: Path, learning_rates: Mapping[str, float] | None = None) -> Self:
        """From a checkpoint, at a copy of the module; ``learning_rates`` where the file has none.

        Raises SpecError with the tensor's name, value and bound if the file does not fit.
        """
        saved = read_checkpoint(path, setting.network.module)
        check_state(saved, setting.network.module, lambda name: setting.rule(name).keeps)
        module = copy.deepcopy(setting.network.module)
        module.load_state_dict(saved.weights, strict=False)  # strict would ask for every name of tied weights
        network = replace(setting.network, module=module)
        loaded = replace(setting, network=network, state=lambda name: saved.state.get(name, {}))
        return cls.of(loaded, saved.learning_rates or learning_rates or {})


def resumed_cell(
    resumed: Resumed,
    seed: int,
    batch: Batch,
    scaling: BlockScaling,
    balance: Balance,
    *,
    stability: bool,
    examples: int | None = None,
) -> Cell:
    """The cell of a recommendation that keeps all scales: before it are the present learning rates, after it the new.

    Where the present rates are not known, they are PyTorch's default. ``examples``: see Judgement.
    """
    setting, parameters = resumed.setting, scaling.parameters
    assert scaling.feature_step is not None
    present, new = (
        Judgement(lr, scaling.feature_step, balance, stability, settles=False, examples=examples)
        for lr in (1.0, scaling.master_lr)
    )
    default = dict.fromkeys((block.name for block in setting.network.blocks), PYTORCH_LEARNING_RATE)
    before, doubts = measured_state(setting, parameters, batch, resumed.present or default, present)
    found = measure_state(setting, parameters, batch, scaling.rates)
    after, more = seed_state(setting, parameters, batch, found, new)
    warnings = (*resumed.doubts, *(f"before, {w}" for w in doubts), *more)
    cell = state_cell(setting.network, seed, found, before=before, warnings=warnings)
    return cell.model_copy(update={"scaling": seed_scaling(setting, scaling), "after": after})
