"""Linear maps computed once: their outputs recorded in the first pass, reused as primals in the forward-mode pass.

Of ``y = x Wᵀ + c`` forward mode needs ``ẏ = ẋ Wᵀ + x Ẇᵀ + ċ``, two products; recomputing y would be a third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch.autograd.forward_ad as fwad
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class RecordedLinears(TorchFunctionMode):
    """Within this context, keep what ``torch.nn.functional.linear`` returns."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call ``func``; record its output if it is a linear map."""
        output = func(*args, **(kwargs or {}))
        if func is F.linear:
            self.outputs.append(output.detach())
        return output


class ReusedLinears(TorchFunctionMode):
    """Within this context, linear maps take their primal output from an earlier pass of the same network and batch."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._outputs: Iterator[Tensor] = iter(outputs)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call ``func``; a linear map computes its tangent alone."""
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        return _dual_linear(next(self._outputs), *args, **(kwargs or {}))


def _dual_linear(output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, x_dot = _unpack(input)
    w, w_dot = _unpack(weight)
    _, bias_dot = _unpack(bias) if bias is not None else (None, None)
    flat = x.reshape(-1, x.shape[-1])
    tangent = None if x_dot is None else x_dot.reshape(flat.shape) @ w.t()
    if w_dot is not None:
        tangent = flat @ w_dot.t() if tangent is None else tangent.addmm_(flat, w_dot.t())
    if bias_dot is not None:
        tangent = bias_dot.expand(flat.shape[0], -1) if tangent is None else tangent.add_(bias_dot)
    if tangent is None:
        return output
    return fwad.make_dual(output, tangent.reshape(output.shape))  # type: ignore[no-untyped-call, no-any-return]


def _unpack(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    primal, tangent = fwad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return primal, tangent
