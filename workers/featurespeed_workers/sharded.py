"""Models whose parameters ``fully_shard`` (FSDP2) has spread over processes: one measurement, made by all of them.

Every process calls with its part of the batch, as in training. The network's batch is their union, its loss the mean
of theirs, as FSDP's gradient is. Parameters and gradients are DTensors, shards of a whole; features are made DTensors
too, concatenated over processes. A sum over either is then one over all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
REASON = "parameters are sharded over processes"


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor; knows without importing them."""
    return type(tensor).__name__ == "DTensor"


def local(tensor: Tensor) -> Tensor:
    """This process's part; a tensor that is not sharded is its own."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def summed(value: float, over: Tensor) -> float:
    """The sum over the processes between which ``over`` is sharded; without any, the value itself."""
    if not is_sharded(over):
        return value
    total = torch.tensor([value], dtype=torch.float64, device=local(over).device)
    torch.distributed.all_reduce(total, group=over.device_mesh.get_group())  # type: ignore[attr-defined]
    return total.item()


def like(whole: Tensor, part: Tensor) -> Tensor:
    """``part`` as this process's shard of a tensor that is sharded as ``whole`` is, if that is."""
    if not is_sharded(whole):
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(whole, DTensor)
    mesh, placements = whole.device_mesh, whole.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


def mesh_of(module: nn.Module) -> DeviceMesh | None:
    """The processes over which the module is sharded; ``None`` if it is not.

    Raises ValueError for what cannot be measured: parameters that are not all sharded by ``fully_shard`` over the same
    processes, each with a batch of its own (tensor parallelism, HSDP).
    """
    parameters = dict(module.named_parameters())
    sharded = {name: p for name, p in parameters.items() if is_sharded(p)}
    if not sharded:
        return None
    from torch.distributed.fsdp import FSDPModule

    if not any(isinstance(part, FSDPModule) for part in module.modules()):
        raise ValueError("model: its parameters are sharded, but not by fully_shard; other ways are not supported")
    mesh: DeviceMesh = next(iter(sharded.values())).device_mesh  # type: ignore[attr-defined]
    for name, p in parameters.items():
        if name not in sharded or p.device_mesh != mesh or mesh.ndim != 1 or not p.placements[0].is_shard():  # type: ignore[attr-defined]
            raise ValueError(f"model: parameter {name!r} is not sharded over the one dimension of all others' mesh")
    return mesh


def over_ranks(feature: Tensor, mesh: DeviceMesh) -> Tensor:
    """The feature of the union of all processes' batches, of which this is one's."""
    from torch.distributed.tensor import DTensor, Shard

    if is_sharded(feature):
        raise ValueError("model: features are sharded (tensor parallelism), which is not supported")
    count = torch.tensor([len(feature)], device=feature.device)
    torch.distributed.all_reduce(count, group=mesh.get_group())
    shape = torch.Size([int(count.item()), *feature.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(feature.contiguous(), mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def under(module: nn.Module, parameters: Mapping[str, Tensor], action: Callable[[nn.Module], T]) -> T:
    """What ``action`` makes of the module with other values in its shards; they and buffers are restored to the bit.

    FSDP gathers parameters from the storage of the shards, so values are set there. What it has gathered is dropped
    before and after, lest it be taken for the present values.
    """
    own = dict(module.named_parameters())
    other = {name: local(p).detach() for name, p in parameters.items() if p is not own[name]}
    before = {name: local(own[name]).detach().clone() for name in other}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        _fill(module, own, other)
        return action(module)
    finally:
        _fill(module, own, before)
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])


def _fill(module: nn.Module, own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            local(own[name]).copy_(value)
    for part in module.modules():
        reshard: Any = getattr(part, "reshard", None)
        if reshard is not None:
            reshard()


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    """∇L by parameter name, by FSDP's own backward pass; what ``.grad`` held before is there afterwards."""
    own = dict(module.named_parameters())
    kept = {name: p.grad for name, p in own.items()}
    try:
        for p in own.values():
            p.grad = None
        torch.autograd.backward(loss)
        return {name: p.grad for name, p in own.items()}
    finally:
        for name, p in own.items():
            p.grad = kept[name]
