"""One pass of a network under other parameters, seen at its cut nodes; what belongs to the user stays as it is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from featurespeed_workers import sharded
from featurespeed_workers.eager import as_written
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.network import Network

Inputs = Tensor | Mapping[str, Any]
"""A module's one argument, batch axis first; or its keyword arguments by name."""
Batch = tuple[Any, Any]
"""Inputs, and what the loss takes beside the module's output: targets."""
Parameters = Mapping[str, Tensor]
T = TypeVar("T")


class _Within(nn.Module):
    """Runs an action on a module: what the action does all happens under the parameters of one functional call."""

    def __init__(self, module: nn.Module, action: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.module = module
        self._action = action

    def forward(self) -> Any:
        return self._action(self.module)


def under(network: Network, parameters: Parameters, action: Callable[[nn.Module], T]) -> T:
    """What ``action`` makes of the module while it has other parameters, and copies of its buffers.

    A backward pass belongs inside the action: gradient checkpointing runs parts of the forward pass again.
    """
    if network.mesh is not None:
        with as_written():
            return sharded.under(network.module, parameters, action)
    buffers = {name: buffer.clone() for name, buffer in network.module.named_buffers()}
    swapped = {f"module.{name}": tensor for name, tensor in {**parameters, **buffers}.items()}
    with as_written():
        result: T = functional_call(_Within(network.module, action), swapped, (), tie_weights=True)
    return result


def call(network: Network, parameters: Parameters, inputs: Inputs) -> Any:
    """The module's output under other parameters. Sees a copy of ``inputs``, in case it changes them in place."""
    return under(network, parameters, lambda module: forward(module, inputs))


def forward(module: nn.Module, inputs: Inputs) -> Any:
    """The module's output on a copy of ``inputs``."""
    if isinstance(inputs, Mapping):
        return module(**{name: x.clone() if isinstance(x, Tensor) else x for name, x in inputs.items()})
    return module(inputs.clone())


@contextlib.contextmanager
def cut_nodes(network: Network, visit: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``visit(i, f)`` with the output of block i whenever it is computed; what it returns replaces f.

    Raises MeasurementError on leaving, unless every block ran once and in the order of the chain.
    """
    order: list[int] = []
    with contextlib.ExitStack() as stack:
        for i, block in enumerate(network.blocks):
            module = network.module.get_submodule(block.module)
            stack.callback(module.register_forward_hook(_hook(i, block.name, visit, order)).remove)
        yield
    if order != list(range(len(network.blocks))):
        seen = ", ".join(network.blocks[i].name for i in order[:12])
        raise MeasurementError("not-a-chain", f"each block must run once, in the order given; what ran was: {seen}")


def _hook(
    index: int, name: str, visit: Callable[[int, Tensor], Tensor | None], order: list[int]
) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        feature = output[0] if isinstance(output, tuple) else output
        if not isinstance(feature, Tensor) or not feature.is_floating_point():
            what = str(feature.dtype) if isinstance(feature, Tensor) else type(feature).__name__
            raise MeasurementError(
                "not-a-feature", f"the output of block {name!r} is no tensor of real numbers: {what}"
            )
        order.append(index)
        replacement = visit(index, feature)
        if replacement is None:
            return None
        return (replacement, *output[1:]) if isinstance(output, tuple) else replacement

    return hook


@contextlib.contextmanager
def same_randomness(device: torch.device) -> Iterator[Callable[[], None]]:
    """Give back the global random state at the end; the function that it yields rewinds to the beginning (dropout)."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        cpu = torch.get_rng_state()
        accelerator = torch.cuda.get_rng_state(device) if devices else None

        def rewind() -> None:
            torch.set_rng_state(cpu)
            if accelerator is not None:
                torch.cuda.set_rng_state(accelerator, device)

        yield rewind


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A global random state that ``seed`` alone decides, for what a module draws when called; given back at the end.

    Its stream is another than that from which the weights are drawn under the same seed.
    """
    stream = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    with same_randomness(device):
        torch.default_generator.manual_seed(stream)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(stream)
        yield


def as_real(x: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, as torch.optim sees them; of real numbers the tensor itself."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


CHUNK = 32_768
"""Elements that the CPU's kernels may add up in float32: over 64 million they are off by half a percent."""


def norm(x: Tensor) -> float:
    """‖x‖_2, accumulated in float32 by chunks; in float64 where squares leave the range of float32.

    Of what is sharded over processes, the norm of the whole.
    """
    if sharded.is_sharded(x):
        return math.sqrt(sharded.summed(norm(sharded.local(x)) ** 2, x))
    x = as_real(x.detach())
    precision = torch.promote_types(x.dtype, torch.float32)
    found = math.hypot(*(float(torch.linalg.vector_norm(part, dtype=precision)) for part in chunks(x)))
    return found if 1e-15 < found < 1e15 else float(torch.linalg.vector_norm(x, dtype=torch.float64))


def rms_by_name(module: nn.Module) -> dict[str, float]:
    """Root mean square of every parameter."""
    return {name: norm(p) / math.sqrt(max(1, p.numel())) for name, p in module.named_parameters()}


def inner(x: Tensor, y: Tensor) -> float:
    """⟨x, y⟩ over all (real) coordinates, accumulated as :func:`norm` is."""
    if sharded.is_sharded(x):
        return sharded.summed(inner(sharded.local(x), sharded.local(y)), x)
    x, y = as_real(x), as_real(y)
    if x.dtype in (torch.bfloat16, torch.float16):
        x, y = x.float(), y.float()
    found = math.fsum(float(torch.dot(a, b)) for a, b in zip(chunks(x), chunks(y), strict=True))
    if 1e-25 < abs(found) < 1e25:
        return found
    return float(torch.dot(x.reshape(-1).double(), y.reshape(-1).double()))


def chunks(x: Tensor) -> tuple[Tensor, ...]:
    """The elements of ``x`` in pieces (views of it, if it is contiguous): of CHUNK on the CPU, else one."""
    flat = x.reshape(-1)
    return torch.split(flat, CHUNK) if x.device.type == "cpu" else (flat,)
