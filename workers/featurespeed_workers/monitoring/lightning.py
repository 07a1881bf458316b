"""The monitor as a callback of Lightning, under either of its names: ``lightning`` and ``pytorch_lightning``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from featurespeed.contract.request import Method
from featurespeed_workers.api import Loss
from featurespeed_workers.modules import Blocks
from featurespeed_workers.monitoring.monitor import Every, FeatureSpeedMonitor
from featurespeed_workers.monitoring.targets import Target
from featurespeed_workers.passes import Batch

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as missing:
        raise ImportError("Lightning is not installed: pip install 'featurespeed[lightning]'") from missing


class FeatureSpeedCallback(Callback):  # type: ignore[misc]
    """Measures the training of a LightningModule: see :class:`FeatureSpeedMonitor`, whose arguments these are.

    A step is measured before it is made, in ``on_train_batch_start``, with the Trainer's optimizers; its number is the
    Trainer's ``global_step``. The module's ``forward`` is run, not its ``training_step``, which may log: so ``loss`` is
    to be the loss that ``training_step`` computes from what ``forward`` returns. ``batch``: a function from what the
    data loader yields to (inputs, targets), unless it is that pair already; inputs may be a mapping with forward's
    keyword arguments. Under gradient accumulation the first batch of a step is taken. Only the process of rank 0
    measures and writes. Raises ValueError when training begins, if the arguments do not fit the module.
    """

    def __init__(
        self,
        *,
        to: Target | Sequence[Target],
        loss: Loss = "cross_entropy",
        batch: Callable[[Any], Batch] = tuple,
        every: Every = 100,
        blocks: Blocks | None = None,
        method: Method = "exact",
    ) -> None:
        super().__init__()
        self._arguments: dict[str, Any] = {
            "to": to, "loss": loss, "every": every, "blocks": blocks, "method": method
        }  # fmt: skip
        self._batch = batch
        self._monitor: FeatureSpeedMonitor | None = None
        self._seen = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the arguments, and open the files."""
        if trainer.is_global_zero:
            self._monitor, self._seen = FeatureSpeedMonitor(pl_module, trainer.optimizers, **self._arguments), -1

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure the step that begins with this batch, if it is due."""
        step = trainer.global_step
        if self._monitor is None or step == self._seen:
            return
        self._seen = step
        with trainer.precision_plugin.forward_context():
            self._monitor.step_with(lambda: self._batch(batch), step=step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the files."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the files."""
        self._close()

    def _close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
