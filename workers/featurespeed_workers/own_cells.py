"""What one seed of a user's own module gives: its measurements, and the states that are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from featurespeed.defaults import PYTORCH_LEARNING_RATE, feature_step
from featurespeed_workers.balance import Balance
from featurespeed_workers.measurement import Rates, Setting, StateMeasurement, measure_state
from featurespeed_workers.network import Network
from featurespeed_workers.passes import Batch
from featurespeed_workers.properties import SeedState
from featurespeed_workers.recommendation import seed_scaling
from featurespeed_workers.rules.scaling import BlockScaling
from featurespeed_workers.seeds import Cell, Checkpoint, device_name
from featurespeed_workers.states import Judgement, measured_state, seed_state


def measured_cell(
    setting: Setting, seed: int, batch: Batch, found: StateMeasurement, rates: Rates, *, stability: bool, fresh: bool
) -> Cell:
    """The cell of a measurement at ``rates``; ``fresh`` says that the optimizer's momentum is still to build up."""
    network, balanced = setting.network, not isinstance(rates, Mapping)
    balance = rates if isinstance(rates, Balance) else Balance.even(network)
    wanted = feature_step(setting.main_optimizer)
    how = Judgement(None if balanced else 1.0, wanted, balance, stability, settles=fresh)
    state, doubts = seed_state(setting, _parameters(network), batch, found, how)
    return state_cell(network, seed, found, before=state, warnings=doubts)


def recommended_cell(
    setting: Setting,
    seed: int,
    batch: Batch,
    scaling: BlockScaling,
    balance: Balance,
    *,
    stability: bool,
) -> Cell:
    """The cell of a recommendation; before it is the module as it is, at PyTorch's default learning rate.

    ``setting`` has a fresh optimizer.
    """
    network, own = setting.network, _parameters(setting.network)
    rates = dict.fromkeys((block.name for block in network.blocks), 1.0)
    assert scaling.feature_step is not None
    default, how = (
        Judgement(lr, scaling.feature_step, balance, stability) for lr in (PYTORCH_LEARNING_RATE, scaling.master_lr)
    )
    before, doubts = measured_state(setting, own, batch, rates, default)
    found = measure_state(setting, scaling.parameters, batch, scaling.rates)
    after, more = seed_state(setting, scaling.parameters, batch, found, how)
    as_it_was = (f"before, {w}" for w in doubts)
    cell = state_cell(network, seed, found, before=before, warnings=(*scaling.warnings, *as_it_was, *more))
    return cell.model_copy(update={"scaling": seed_scaling(setting, scaling), "after": after})


def _parameters(network: Network) -> dict[str, Tensor]:
    return dict(network.module.named_parameters())


def state_cell(
    network: Network, seed: int, found: StateMeasurement, *, before: SeedState | None, warnings: Sequence[str]
) -> Cell:
    """The cell of a network at one state; ``found`` is what was measured there."""
    parameter = next(network.module.parameters())
    return Cell(
        seed=seed,
        device=device_name(parameter.device),
        dtype=str(parameter.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        checkpoints=(Checkpoint(step=0, measurement=found),),
        before=before,
        warnings=tuple(f"seed {seed}: {w}" for w in warnings),
    )
