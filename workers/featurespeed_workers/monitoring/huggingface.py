"""The monitor as a callback of the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.hooks import RemovableHandle

from featurespeed.contract.request import Method
from featurespeed_workers.api import Loss
from featurespeed_workers.losses import own_loss
from featurespeed_workers.modules import Blocks
from featurespeed_workers.monitoring.monitor import Every, FeatureSpeedMonitor
from featurespeed_workers.monitoring.targets import Target
from featurespeed_workers.passes import Batch

try:
    from transformers import TrainerCallback
except ImportError as missing:
    raise ImportError("transformers is not installed: pip install 'featurespeed[huggingface]'") from missing


def keyword_arguments(given: Mapping[str, Any]) -> Batch:
    """What the Trainer has given to the model, labels included, as a batch; targets are ``None``.

    Left out is ``num_items_in_batch``, by which the Trainer makes the loss a part of that of several batches.
    """
    return {name: value for name, value in given.items() if name != "num_items_in_batch"}, None


class FeatureSpeedCallback(TrainerCallback):  # type: ignore[misc]
    """Measures the training of a ``transformers.Trainer``: see :class:`FeatureSpeedMonitor`, whose arguments these are.

    A callback is not told the batch. So at the beginning of a step that is due, a hook is put on the model that keeps
    the keyword arguments of its next forward pass, and goes. The step is measured on these in
    ``on_pre_optimizer_step``, before it is made; its number is ``state.global_step``. Under gradient accumulation that
    is the first batch of the step. ``loss``: by default the one that the model itself returns, for the labels among its
    arguments. ``batch``: a function from these arguments to (inputs, targets); by default all of them are inputs. Only
    the process of rank 0 measures and writes. Raises ValueError when training begins, if the arguments do not fit the
    model.

    Where the Trainer computes the loss without the model (``label_smoothing_factor``, ``compute_loss_func``), labels
    never reach the model: steps cannot be measured by the model's loss, and records say so.
    """

    def __init__(
        self,
        *,
        to: Target | Sequence[Target],
        loss: Loss = own_loss,
        batch: Callable[[Mapping[str, Any]], Batch] = keyword_arguments,
        every: Every = 100,
        blocks: Blocks | None = None,
        method: Method = "exact",
    ) -> None:
        self._arguments: dict[str, Any] = {
            "to": to, "loss": loss, "every": every, "blocks": blocks, "method": method
        }  # fmt: skip
        self._batch = batch
        self._monitor: FeatureSpeedMonitor | None = None
        self._given: Mapping[str, Any] | None = None
        self._hook: RemovableHandle | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any) -> None:
        """Have the batch kept if this step is to be measured; at the first one, check the arguments and open files."""
        if not state.is_world_process_zero:
            return
        if self._monitor is None:
            self._monitor = FeatureSpeedMonitor(model, _torch_optimizer(optimizer), **self._arguments)
        if self._monitor.due(state.global_step):
            self._unhook()
            self._hook = model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: Any, args: Any, given: Mapping[str, Any]) -> None:
        self._given = dict(given)
        self._unhook()

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure the step that the optimizer is about to make."""
        given, self._given = self._given, None
        if self._monitor is not None and given is not None:
            self._monitor.step_with(lambda: self._batch(given), step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the files."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None


def _torch_optimizer(optimizer: Any) -> Any:
    """The optimizer within that of accelerate."""
    return getattr(optimizer, "optimizer", optimizer)
