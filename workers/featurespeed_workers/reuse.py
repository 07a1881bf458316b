"""Linear maps, convolutions, attention: recorded in the first pass, so that forward mode computes tangents alone.

Of ``y = x Wᵀ + c`` forward mode needs ``ẏ = ẋ Wᵀ + x Ẇᵀ + ċ``, two products; recomputing y would be a third. So it is
with convolutions. Fused attention has no forward-mode rule in torch, and its unfused form takes a slow path through
Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as fwad
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Recording = Sequence[tuple[Tensor, int]]
"""Outputs in the order of the calls, each with its version: one that has changed since is of no use."""


class AnotherPassError(RuntimeError):
    """The module calls other operators than in the first pass: it may ask whether a gradient is wanted."""

    def __init__(self) -> None:
        super().__init__("a second pass on the same batch calls other operators than the first")


class RecordedOutputs(TorchFunctionMode):
    """Within this context, keep the outputs of linear maps, convolutions and attention, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.recording: list[tuple[Tensor, int]] = []
        self.dtypes: set[torch.dtype] = set()
        """Of all that carries a gradient."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call ``func``; record its output if it is one of ours."""
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.requires_grad and output.is_floating_point():
            self.dtypes.add(output.dtype)
        if func in _TANGENTS:
            self.recording.append((output.detach(), output._version))
        return output


class ReusedOutputs(TorchFunctionMode):
    """Within this context, those outputs are taken from an earlier pass of the same network on the same batch."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording: Iterator[tuple[Tensor, int]] = iter(recording)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or compute the tangent of its known output alone."""
        given = kwargs or {}
        if func not in _TANGENTS:
            return func(*args, **given)
        output, version = next(self._recording, (None, 0))
        if output is None:
            raise AnotherPassError
        changed = output._version != version  # in place, by what came after
        tangent = NotImplemented if changed or _autocasts(output) else _TANGENTS[func](*args, **given)
        if tangent is NotImplemented:
            return func(*args, **given)
        if tangent is None:
            return output
        if tangent.numel() != output.numel():
            raise AnotherPassError
        return fwad.make_dual(output, tangent.reshape(output.shape))  # type: ignore[no-untyped-call]


def _autocasts(output: Tensor) -> bool:
    return torch.is_autocast_enabled(output.device.type)


def _linear_tangent(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """ẋ Wᵀ + x Ẇᵀ + ċ with the leading axes of x flattened; ``None`` if nothing moves."""
    x, x_dot = _unpack(input)
    w, w_dot = _unpack(weight)
    bias_dot = _unpack(bias)[1] if bias is not None else None
    flat = x.reshape(-1, x.shape[-1])
    tangent = None if x_dot is None else x_dot.reshape(flat.shape) @ w.t()
    if w_dot is not None:
        tangent = flat @ w_dot.t() if tangent is None else tangent.addmm_(flat, w_dot.t())
    if bias_dot is not None:
        tangent = bias_dot.repeat(flat.shape[0], 1) if tangent is None else tangent.add_(bias_dot)
    return tangent


def _addmm_tangent(input: Tensor, mat1: Tensor, mat2: Tensor, **options: Any) -> Any:
    """ẋ V + x V̇ + ċ, of ``c + x V``: a linear map whose matrix is stored as (in, out), as GPT-2's."""
    c_dot = _unpack(input)[1]
    if options or input.ndim != 1:
        return NotImplemented
    tangent = _product_tangent(*_unpack(mat1), *_unpack(mat2))
    if c_dot is None or tangent is None:
        return tangent if c_dot is None else c_dot.repeat(mat1.shape[0], 1)
    return tangent.add_(c_dot)


def _conv2d_tangent(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *options: Any, **more: Any
) -> Tensor | None:
    """ẋ ∗ W + x ∗ Ẇ + ċ, (batch, channels, height, width); ``None`` if nothing moves. ``options``: stride and so on."""
    (x, x_dot), (w, w_dot) = _unpack(input), _unpack(weight)
    bias_dot = _unpack(bias)[1] if bias is not None else None
    tangent = None if x_dot is None else F.conv2d(x_dot, w, bias_dot, *options, **more)
    if w_dot is not None:
        by_weight = F.conv2d(x, w_dot, bias_dot if tangent is None else None, *options, **more)
        tangent = by_weight if tangent is None else tangent.add_(by_weight)
    if tangent is None and bias_dot is not None:
        tangent = F.conv2d(torch.zeros_like(x), w, bias_dot, *options, **more)
    return tangent


def _attention_tangent(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Ṗ V + P V̇ with P = softmax(S), S = c Q Kᵀ + mask, Ṗ = P ∘ (Ṡ − Σ P ∘ Ṡ).

    (…, positions, head width); ``None`` if nothing moves, NotImplemented for an attention of another kind.
    """
    (q, q_dot), (k, k_dot), (v, v_dot) = _unpack(query), _unpack(key), _unpack(value)
    moving_mask = attn_mask is not None and _unpack(attn_mask)[1] is not None
    if dropout_p or moving_mask:
        return NotImplemented
    if enable_gqa:
        (k, k_dot), (v, v_dot) = (_for_each_query(x, x_dot, q.shape[-3]) for x, x_dot in ((k, k_dot), (v, v_dot)))
    if q_dot is None and k_dot is None and v_dot is None:
        return None
    c = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    weights = _attention_weights(q, k, attn_mask, is_causal, c)
    tangent = torch.zeros((), dtype=q.dtype, device=q.device) if v_dot is None else weights @ v_dot
    transposed = None if k_dot is None else k_dot.transpose(-2, -1)
    scores_dot = _product_tangent(q, q_dot, k.transpose(-2, -1), transposed)
    if scores_dot is not None:
        weighted = weights * scores_dot.mul_(c)
        weights_dot = weighted.sub_(weights * weighted.sum(-1, keepdim=True))
        tangent = tangent + weights_dot @ v
    return tangent


def _for_each_query(x: Tensor, x_dot: Tensor | None, heads: int) -> tuple[Tensor, Tensor | None]:
    """Keys or values of which a head serves several queries: each as often as it is used, along the axis of heads."""
    repeats = heads // x.shape[-3]
    return x.repeat_interleave(repeats, -3), None if x_dot is None else x_dot.repeat_interleave(repeats, -3)


def _attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    scores = (q * scale) @ k.transpose(-2, -1)
    if causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores.masked_fill_(~visible, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    if mask is None:
        return weights
    return weights.masked_fill(
        scores.isneginf().all(-1, keepdim=True), 0.0
    )  # a row that sees nothing attends to nothing


def _product_tangent(a: Tensor, a_dot: Tensor | None, b: Tensor, b_dot: Tensor | None) -> Tensor | None:
    """ȧ b + a ḃ, a tensor of its own; ``None`` if nothing moves."""
    if a_dot is None:
        return None if b_dot is None else a @ b_dot
    moved = a_dot @ b
    if b_dot is None:
        return moved
    return torch.addmm(moved, a, b_dot, out=moved) if a.ndim == 2 else moved.add_(a @ b_dot)


def _unpack(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    primal, tangent = fwad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return primal, tangent


_TANGENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear_tangent,
    torch.addmm: _addmm_tangent,
    F.conv2d: _conv2d_tangent,
    F.scaled_dot_product_attention: _attention_tangent,
}
