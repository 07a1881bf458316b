"""The monitor for a plain training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any, Self, get_args

import torch
from torch import nn

from featurespeed.contract.request import Method
from featurespeed_workers.api import Loss, LossName, measure
from featurespeed_workers.directions import UpdateRule
from featurespeed_workers.eager import as_given_to_compile
from featurespeed_workers.modules import Blocks, network_of
from featurespeed_workers.monitoring.records import Failure, Record
from featurespeed_workers.monitoring.targets import Sink, Target, close, sinks_of
from featurespeed_workers.network import Network
from featurespeed_workers.passes import Batch, Inputs

Every = int | Collection[int] | Callable[[int], bool]
"""Steps to measure: every so many from step 0 on, those in a collection, or those that a function says."""

log = logging.getLogger(__name__)


class FeatureSpeedMonitor:
    """Measures training while it runs: angle, feature speed and contribution of every block, and verdicts.

    ``model`` and ``blocks`` as for :func:`featurespeed_workers.measure`; blocks that are not given are found once, for
    the first batch that is measured. ``optimizer``: your torch optimizer, or several in a list. ``loss``: a name, or a
    function of the model's output and the targets. ``every``: see :data:`Every`. ``to``: a path (JSONL, appended to), a
    ``SummaryWriter``, a callable that takes a :class:`Record`, or several of them in a list. ``method``: as for
    ``measure``.

    Call :meth:`step` before ``optimizer.step()``: what is measured is the update that the optimizer is about to make
    from its present state, at the rates that its groups have now, weight decay included, on the batch that is given.
    Its gradient is computed anew on that batch, so clipping and accumulation have no part in it, and dropout draws
    another mask. Model, gradients, buffers, optimizer and torch's random state stay as they are, to the bit: training
    is the same with and without. A measurement takes about as long as two training steps.

    A step that cannot be measured gives a record with the reason. That, and a target that fails, never end the
    training. Raises ValueError for arguments that do not fit one another, OSError for a file that cannot be opened.
    """

    def __init__(
        self,
        model: nn.Module | Network,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        to: Target | Sequence[Target],
        loss: Loss = "cross_entropy",
        every: Every = 100,
        blocks: Blocks | None = None,
        method: Method = "exact",
    ) -> None:
        self._network: Network | ValueError | None = None
        if isinstance(model, Network):
            self._module, self._network = model.module, model
        else:
            self._module = _local(model)
            self._network = None if blocks is None else network_of(model, blocks)
        self._optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        for one in self._optimizers:
            for group in one.param_groups:
                UpdateRule.from_group(one, group)
        for name, value, known in (("loss", loss, LossName), ("method", method, Method)):
            if isinstance(value, str) and value not in get_args(known):
                raise ValueError(f"{name}: {value!r} is not one of {', '.join(get_args(known))}")
        self._loss, self._method = loss, method
        self._due = _schedule(every)
        self._next = 0
        self._last_failure = ""
        self._sinks = sinks_of(to)
        self._failed_sinks: list[Sink] = []

    def due(self, step: int) -> bool:
        """Whether this step is to be measured."""
        return self._due(step)

    def step(self, inputs: Inputs, targets: Any = None, *, step: int | None = None) -> Record | None:
        """Count a step, and measure it if it is due: the record then, else ``None``.

        ``inputs``: the model's one argument, or a mapping with its keyword arguments. ``step``: its number, if training
        was resumed; else steps are counted from 0, or on from the last that was given.
        """
        return self.step_with(lambda: (inputs, targets), step=step)

    def step_with(self, batch: Callable[[], Batch], *, step: int | None = None) -> Record | None:
        """As :meth:`step`, with a batch that is made only if it is needed; where that fails, the record says so."""
        now = self._next if step is None else step
        self._next = now + 1
        if not self.due(now):
            return None
        record = self._measured(now, batch)
        for sink in self._sinks:
            try:
                sink(record)
            except Exception as error:
                if sink not in self._failed_sinks:  # told once
                    log.warning("step %d is not written to %r: %r", now, sink, error)
                    self._failed_sinks.append(sink)
        return record

    def _measured(self, step: int, batch: Callable[[], Batch]) -> Record:
        began = time.perf_counter()
        try:
            inputs, targets = batch()
            network = self._network_for(inputs)
            report = measure(
                network,
                [(inputs, targets)],
                loss=self._loss,
                optimizer=self._optimizers,
                learning_rates="optimizer",
                method=self._method,
            )
            return Record.of(step, time.perf_counter() - began, report, network, self._rates(network))
        except Exception as error:
            failure = Failure.of(error)
            if failure.type != self._last_failure:  # the same one, again and again, is in the records
                log.warning("step %d is not measured: %s", step, failure.detail)
            self._last_failure = failure.type
            return Record(step=step, seconds=time.perf_counter() - began, error=failure)

    def _network_for(self, inputs: Inputs) -> Network:
        """The network, or why there is none: its blocks are looked for once."""
        if self._network is None:
            try:
                self._network = network_of(self._module, inputs=inputs)
            except ValueError as error:
                self._network = error
        if isinstance(self._network, ValueError):
            raise self._network
        return self._network

    def _rates(self, network: Network) -> dict[str, float]:
        names = {p: name for name, p in network.module.named_parameters() if p.requires_grad}
        groups = (group for optimizer in self._optimizers for group in optimizer.param_groups)
        return {names[p]: float(group["lr"]) for group in groups for p in group["params"] if p in names}

    def close(self) -> None:
        """Close the files that the monitor has opened; writers and callables are their owner's."""
        close(self._sinks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _schedule(every: Every) -> Callable[[int], bool]:
    if callable(every):
        return every
    if isinstance(every, int):
        if every < 1:
            raise ValueError(f"every: must be at least 1, got {every}")
        return lambda step: step % every == 0
    if not isinstance(every, Collection):
        raise ValueError(f"every: must be a whole number, a collection of them or a function, got {every!r}")
    return frozenset(every).__contains__


def _local(model: nn.Module) -> nn.Module:
    """The model, if one process can measure it alone: a collective that the others do not join would never end."""
    model = as_given_to_compile(model)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(f"model: give the module within the {type(model).__name__}, its attribute module")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for name, part in model.named_modules():
            if isinstance(part, nn.SyncBatchNorm) and torch.distributed.get_world_size() > 1:
                raise ValueError(f"model: {name or 'it'} is a SyncBatchNorm, which waits for the other processes")
        for name, parameter in model.named_parameters():
            if type(parameter).__name__ == "DTensor":
                raise ValueError(f"model: parameter {name!r} is sharded over processes; call measure in all of them")
    return model
