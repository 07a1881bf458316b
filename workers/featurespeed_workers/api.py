"""The engine on networks of the user's own: ``measure`` and ``recommend`` in-process."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor, nn

from featurespeed.contract import (
    Adam,
    AdamW,
    Granularity,
    Muon,
    Optimizer,
    OptimizerName,
    Refine,
    Report,
    Sgd,
    SignSgd,
)
from featurespeed.contract.base import Model as ContractModel
from featurespeed.contract.request import Method
from featurespeed.defaults import RECOMMENDATION_BATCHES, RELATIVE_SENSITIVITY, contribution_weights, largest_decay
from featurespeed.defaults import feature_step as default_feature_step
from featurespeed_workers.balance import Balance
from featurespeed_workers.directions import rules_of, rules_of_groups
from featurespeed_workers.eager import ALONE
from featurespeed_workers.found_blocks import blocks as found_blocks
from featurespeed_workers.losses import LossFunction, loss_function
from featurespeed_workers.measurement import Rates, Setting, measure_state
from featurespeed_workers.modules import Blocks, network_of
from featurespeed_workers.network import Network
from featurespeed_workers.optimizers import learning_rates_of, state_of
from featurespeed_workers.own_cells import measured_cell, recommended_cell
from featurespeed_workers.passes import Batch
from featurespeed_workers.refining import Probing
from featurespeed_workers.resuming import Resumed, resumed_cell
from featurespeed_workers.rules.fsc import fsc
from featurespeed_workers.rules.kept import keep_scales
from featurespeed_workers.seeds import Cell, assemble
from featurespeed_workers.sharded import REASON

Model = nn.Module | Network | Callable[[int], nn.Module | Network]
Batches = Iterable[Batch] | Callable[[int], Iterable[Batch]]
LossName = Literal["mse", "cross_entropy"]
Loss = LossName | LossFunction
AnyOptimizer = OptimizerName | Optimizer | torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


P = ParamSpec("P")
R = TypeVar("R")


def _one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Threads wait for one another."""

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with ALONE:
            return function(*args, **kwargs)

    return alone


@_one_at_a_time
def measure(
    model: Model,
    batches: Batches,
    *,
    loss: Loss = "cross_entropy",
    optimizer: AnyOptimizer = "sgd",
    blocks: Blocks | None = None,
    learning_rates: float | Mapping[str, float] | Literal["balanced", "optimizer"] = "balanced",
    contributions: Mapping[str, float] | None = None,
    granularity: Granularity = "block",
    stability: bool = False,
    method: Method = "exact",
    seeds: Sequence[int] = (0,),
) -> Report:
    """Measure angles, speeds and contributions of every block at the model's present state.

    ``model``: a module, a Network, or a function from a seed to one, called for each of ``seeds``. ``batches``: an
    iterable of (inputs, targets), of which the first is used, or a function from a seed to one; inputs are the module's
    one argument or a mapping with its keyword arguments. ``optimizer``: a name or a contract optimizer (both at a fresh
    state), or your torch optimizer (several in a list, as Muon and AdamW), whose state is then the present one.
    ``learning_rates``: "balanced" (Eq. 8), one rate, a map from block to rate, or "optimizer": those of your torch
    optimizers' groups. ``contributions``: balanced rates give each block that trains the part (its weight) / (sum of
    their weights) of the loss decay; a map from ``input`` (the first block), ``hidden`` and ``output`` (the last) to
    weights. ``granularity``: what has a balanced rate of its own, a ``block``, a ``tensor`` or a ``group``. Parameters
    that require no gradient are frozen. ``blocks``: see :func:`network_of`; unless given they are found, by
    :func:`featurespeed_workers.blocks`, on the first batch, and shown on standard error if that is a terminal.
    ``method``: ``exact`` (forward mode; where an operator has no rule for it ``double_backward``, and where that fails
    ``central_difference``, which the report then says), one of these, or the cheaper one-sided ``finite_difference``.
    ``stability``: measure how fast backward passes and gradients change, by a second derivative, at the cost of about
    four training steps.

    Of a model that ``fully_shard`` has sharded over processes, all of these call with their parts of the batch, after
    the backward pass, name the ``blocks``, and get the same report: that of the union of their batches.

    The model, its gradients and buffers, the optimizer and the global random state stay as they are, to the bit.
    Raises MeasurementError if the network cannot be measured, ValueError for arguments that do not fit the module.
    """
    _check(method, granularity, seeds)
    began, cells = time.perf_counter(), []
    for seed in seeds:
        network, [batch] = _begun(model, batches, seed, blocks, None, 1, show=seed == seeds[0])
        setting = _setting(network, loss, optimizer, method, own_rates=learning_rates == "optimizer")
        weights = None if contributions is None else _weights(setting, contributions)
        rates = _rates(network, learning_rates, weights, granularity)
        found = measure_state(setting, _parameters(network), batch, rates)
        fresh = isinstance(optimizer, str | ContractModel)
        cells.append(measured_cell(setting, seed, batch, found, rates, stability=stability, fresh=fresh))
    return assemble("measure", cells, spec_sha256=None, wall_seconds=time.perf_counter() - began)


@_one_at_a_time
def recommend(
    model: Model,
    batches: Batches,
    *,
    loss: Loss = "cross_entropy",
    optimizer: AnyOptimizer = "adamw",
    blocks: Blocks | None = None,
    branches: Mapping[str, Sequence[str]] | None = None,
    relative_sensitivity: float = RELATIVE_SENSITIVITY,
    feature_step: float | None = None,
    contributions: Mapping[str, float] | None = None,
    granularity: Granularity = "block",
    refine: Refine | int | None = None,
    stability: bool = True,
    method: Method = "exact",
    seeds: Sequence[int] = (0,),
    checkpoint: bool | str | os.PathLike[str] = False,
) -> Report:
    """Recommend initialization scale and learning rate of every block by rule ``fsc``, from the model's own weights.

    Arguments as for :func:`measure`, ``branches`` as for :func:`network_of`; the first four batches are averaged. The
    model stays as it is: ``report.apply(model)`` sets the scales, ``report.param_groups(model)`` gives the rates. The
    report's ``properties.before`` are those of the model as it is, at the learning rate 0.001 for all.
    ``feature_step`` (κ) is by default that of the optimizer, and for SGD under loss ``mse`` then less where a
    step would take more than a quarter of the loss.

    ``refine``: short training probes around this answer, of so many steps (or a Refine, with factors). They take
    further batches, which are kept meanwhile, and begin again with them where there are too few; the optimizer must be
    a name or a contract optimizer.

    ``checkpoint``: in the middle of a training, scales stay and learning rates alone are balanced anew. True: at the
    weights that the model has and the state that your torch optimizer has; or a file of :func:`save_checkpoint`, at
    whose weights and state a copy of the model is measured. ``seeds`` are then of batches alone. κ is by default that
    of the present learning rates, so that features keep their pace; ``properties.before`` are at these rates. Where
    they are not known, κ is the optimizer's default, or less where that would take more than a quarter of the loss.
    ``relative_sensitivity``, ``branches`` and ``refine`` do not go with it.
    """
    _check(
        method,
        granularity,
        seeds,
        relative_sensitivity=relative_sensitivity,
        feature_step=1.0 if feature_step is None else feature_step,
    )
    if checkpoint is not False:
        _check_resumed({"branches": branches, "refine": refine}, relative_sensitivity)
    probing = Probing.of(refine, _specified(optimizer) if refine is not None else None)
    began, cells = time.perf_counter(), []
    for seed in seeds:
        count = RECOMMENDATION_BATCHES + probing.batches
        network, drawn = _begun(model, batches, seed, blocks, branches, count, show=seed == seeds[0])
        if network.mesh is not None:
            raise ValueError(f"model: {REASON}; recommend needs them whole, before fully_shard")
        setting = _setting(network, loss, optimizer, method, own_rates=False)
        chosen = drawn[:RECOMMENDATION_BATCHES]
        weights = _weights(setting, contributions or {})
        balance = Balance.of(network, weights, granularity)
        if checkpoint is not False:
            resumed = _resumed(setting, optimizer, checkpoint)
            kept = keep_scales(
                resumed.setting,
                chosen,
                present=resumed.present,
                contributions=weights,
                granularity=granularity,
                feature_step=feature_step,
            )
            cells.append(resumed_cell(resumed, seed, chosen[0], kept, balance, stability=stability))
            continue
        scaling = fsc(
            setting,
            _parameters(network),
            chosen,
            relative_sensitivity=relative_sensitivity,
            feature_step=feature_step or default_feature_step(setting.main_optimizer),
            largest_decay=None if feature_step is not None else largest_decay(setting.main_optimizer, str(loss)),
            contributions=weights,
            granularity=granularity,
        )
        fresh = replace(setting, state=lambda name: {})
        cells.append(recommended_cell(fresh, seed, chosen[0], scaling, balance, stability=stability))
        probing.start_from(setting, _parameters(network), cells[-1], drawn[RECOMMENDATION_BATCHES:] or drawn)

    def assembled(found: Sequence[Cell]) -> Report:
        wall = time.perf_counter() - began
        return assemble("recommend", found, spec_sha256=None, wall_seconds=wall)

    return probing.refined(cells, assembled)


def _check_resumed(given: Mapping[str, object], relative_sensitivity: float) -> None:
    for name in [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{name}: does not go with checkpoint, which keeps all scales and the κ that is asked for")
    if relative_sensitivity != RELATIVE_SENSITIVITY:
        raise ValueError("relative_sensitivity: does not go with checkpoint; τ is then the one that is measured")


def _resumed(setting: Setting, optimizer: AnyOptimizer, checkpoint: bool | str | os.PathLike[str]) -> Resumed:
    optimizers = () if isinstance(optimizer, str | ContractModel) else _sequence(optimizer)
    rates = learning_rates_of(optimizers, setting.network.module)
    if isinstance(checkpoint, bool):
        return Resumed.of(setting, rates)
    return Resumed.from_file(setting, Path(checkpoint), rates)


def _sequence(optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]) -> Sequence[torch.optim.Optimizer]:
    found = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    if not isinstance(found, Sequence) or not all(isinstance(one, torch.optim.Optimizer) for one in found):
        raise ValueError(f"optimizer: {optimizer!r} is neither a name nor a torch optimizer, nor several in a list")
    return found


def _check(method: str, granularity: str, seeds: Sequence[int], **positive: float) -> None:
    for name, value, known in (("method", method, Method), ("granularity", granularity, Granularity)):
        if value not in get_args(known):
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(get_args(known))}")
    if not isinstance(seeds, Sequence) or not all(isinstance(seed, int) for seed in seeds):
        raise ValueError(f"seeds: must be a sequence of whole numbers, as (0, 1, 2), got {seeds!r}")
    if not seeds:
        raise ValueError("seeds: at least one is needed, got none")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds: {list(seeds)} names a seed twice")
    for name, number in positive.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name}: must be positive, got {number}")


def _weights(setting: Setting, given: Mapping[str, float]) -> dict[str, float]:
    """The weight of each group in the loss decay: as given, else the default."""
    parameters = dict(setting.network.module.named_parameters())
    hidden = setting.network.blocks[1:-1]
    defaults = contribution_weights(sum(any(parameters[n].requires_grad for n in b.parameters) for b in hidden))
    for group, weight in given.items():
        if group not in defaults:
            raise ValueError(f"contributions: unknown group {group!r}; groups are {', '.join(defaults)}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"contributions: the weight of {group!r} must be finite and not negative, got {weight}")
    return {**defaults, **given}


def _begun(
    model: Model,
    batches: Batches,
    seed: int,
    blocks: Blocks | None,
    branches: Mapping[str, Sequence[str]] | None,
    count: int,
    *,
    show: bool,
) -> tuple[Network, list[Batch]]:
    """The network of a seed, and its first batches; ``show``: print blocks that are found, if a terminal is there."""
    built = model if isinstance(model, nn.Module | Network) else model(seed)
    drawn = _first(batches, seed, count)
    if isinstance(built, Network):
        return built, drawn
    if blocks is None:
        blocks = found_blocks(built, drawn[0])
        if show and sys.stderr is not None and sys.stderr.isatty():
            print(blocks, file=sys.stderr, flush=True)
    return network_of(built, blocks, branches), drawn


def _parameters(network: Network) -> dict[str, Tensor]:
    return dict(network.module.named_parameters())


def _first(batches: Batches, seed: int, count: int) -> list[Batch]:
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # a DataLoader draws from the global state
        given = batches(seed) if callable(batches) else batches
        found = list(islice(iter(given), count))
    if not found:
        raise ValueError("batches: at least one is needed, got none")
    _check_pairs(found)
    return found


def _check_pairs(batches: Sequence[object]) -> None:
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            what = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
            raise ValueError(f"batches: each must be a pair of inputs and targets, got {what}")


def _setting(network: Network, loss: Loss, optimizer: AnyOptimizer, method: Method, *, own_rates: bool) -> Setting:
    if isinstance(loss, str) and loss not in get_args(LossName):
        raise ValueError(f"loss: {loss!r} is not one of {', '.join(get_args(LossName))}, nor a function")
    function = loss_function(loss) if isinstance(loss, str) else loss
    if not isinstance(optimizer, str | ContractModel):
        return _setting_of(network, function, _sequence(optimizer), method, own_rates)
    if own_rates:
        raise ValueError("learning_rates: 'optimizer' needs a torch optimizer")
    rule = rules_of(_named(optimizer) if isinstance(optimizer, str) else optimizer, network)
    return Setting(network, function, rule, method=method)


def _specified(optimizer: AnyOptimizer) -> Optimizer:
    if isinstance(optimizer, str):
        return _named(optimizer)
    if isinstance(optimizer, torch.optim.Optimizer | Sequence):
        raise ValueError("refine: needs the optimizer by its name or as a contract optimizer, not a torch optimizer")
    return optimizer


def _named(name: str) -> Optimizer:
    kinds: dict[str, Optimizer] = {
        "sgd": Sgd(name="sgd"),
        "adam": Adam(name="adam"),
        "adamw": AdamW(name="adamw"),
        "signsgd": SignSgd(name="signsgd"),
        "muon": Muon(name="muon"),
    }
    if name not in kinds:
        raise ValueError(f"optimizer: {name!r} is not one of {', '.join(kinds)}")
    return kinds[name]


def _setting_of(
    network: Network,
    loss: LossFunction,
    optimizers: Sequence[torch.optim.Optimizer],
    method: Method,
    own_rates: bool,
) -> Setting:
    """Directions, states and (with ``own_rates``, as the rule's gain) rates from torch optimizers' groups."""
    rules = rules_of_groups(optimizers, network.module)
    if own_rates:
        rates = learning_rates_of(optimizers, network.module)
        rules = {name: replace(rule, gain=rates[name]) for name, rule in rules.items()}
    states = {name: state_of(optimizers, p) for name, p in network.module.named_parameters()}
    return Setting(network, loss, rules.__getitem__, states.__getitem__, method)


def _rates(
    network: Network,
    rates: float | Mapping[str, float] | str,
    weights: Mapping[str, float] | None,
    granularity: Granularity,
) -> Rates:
    if rates == "balanced":
        even = Balance.even(network, granularity)
        return even if weights is None else Balance.of(network, weights, granularity)
    for field, given in (("contributions", weights is not None), ("granularity", granularity != "block")):
        if given:
            raise ValueError(f"{field}: needs learning_rates 'balanced', not explicit ones")
    names = [block.name for block in network.blocks]
    if isinstance(rates, Mapping):
        if missing := [name for name in names if name not in rates]:
            raise ValueError(f"learning_rates: no rate for block {missing[0]!r}")
        if unknown := sorted(set(rates) - set(names)):
            raise ValueError(f"learning_rates: unknown block {unknown[0]!r}; blocks are {', '.join(names)}")
        return rates
    if isinstance(rates, str) and rates != "optimizer":
        raise ValueError(f"learning_rates: {rates!r} is neither 'balanced' nor 'optimizer', a number or a map")
    return dict.fromkeys(names, 1.0 if isinstance(rates, str) else float(rates))
