"""The losses, with their normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from featurespeed.contract.request import Loss

LossFunction = Callable[[Any, Any], Tensor]
"""Of a module's output and targets."""


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ · mean over batch (and positions) of the sum over outputs of squared error. (…, outputs), the same → scalar.

    The shapes must be equal: broadcasting one against the other would be a silent mistake.
    """
    if outputs.shape != targets.shape:
        raise ValueError(f"mse: outputs have shape {tuple(outputs.shape)}, targets {tuple(targets.shape)}")
    return 0.5 * (outputs - targets).square().sum(dim=-1).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over batch (and positions) of −log softmax(logits)[label], nats. (…, classes), int64 (…) → scalar."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"cross_entropy: logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)}")
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def checked(loss: Any) -> Tensor:
    """What a loss function returned, if a gradient can be taken of it; else ValueError says what it is."""
    if not isinstance(loss, Tensor):
        raise ValueError(f"loss: must return a tensor of one number, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"loss: must return one number, got shape {tuple(loss.shape)}; take the mean or the sum")
    if not loss.is_floating_point():
        raise ValueError(f"loss: must return a real number, got {loss.dtype}")
    if not loss.requires_grad:
        raise ValueError("loss: no gradient leads from it to the model; it is detached, or made of what has none")
    return loss


def own_loss(outputs: Any, targets: Any = None) -> Tensor:
    """The loss that a Hugging Face model returns where labels are among its inputs; ``targets`` are not looked at."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0]
    if loss is None:
        raise ValueError("loss: the model returned none; it needs labels among its inputs")
    return loss  # type: ignore[no-any-return]


def loss_function(name: Loss) -> LossFunction:
    """The loss of a request: of a module's output, or of the first of several."""
    loss = {"mse": mse, "cross_entropy": cross_entropy}[name]
    return lambda outputs, targets: loss(first_of(outputs), targets)


def first_of(outputs: Any) -> Tensor:
    """A module's output, or the first of several: the logits of a model of ``transformers``."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]
