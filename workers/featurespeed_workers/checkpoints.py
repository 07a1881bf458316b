"""Checkpoints: one safetensors file with a model's weights and its optimizer's state.

A weight or buffer has its name in the model before ``torch.compile``. What the optimizer keeps of a parameter is
``optimizer.state.<parameter>.<quantity>``, and its learning rate ``optimizer.param_groups.<parameter>.lr``: the keys of
``torch.distributed.checkpoint.state_dict.get_optimizer_state_dict`` with ``flatten_optimizer_state_dict``, after
``optimizer.``. A file with weights alone is a checkpoint too.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from featurespeed.contract import FieldError, SpecError
from featurespeed.contract.validation import MOST_ERRORS
from featurespeed_workers.directions import rules_of_groups
from featurespeed_workers.eager import uncompiled
from featurespeed_workers.optimizers import learning_rates_of, state_of

OWN = "optimizer."
"""Begins the names of all tensors that are not the model's."""
STATE = "optimizer.state."
RATES = "optimizer.param_groups."
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


@dataclass(frozen=True)
class SavedState:
    """What a checkpoint holds, by the model's names, on the model's device and in its dtypes.

    ``weights`` are parameters and buffers, ``state`` what the optimizer keeps of each parameter (empty if there is
    none), ``learning_rates`` those by parameter that are known.
    """

    weights: dict[str, Tensor]
    state: dict[str, dict[str, Tensor]]
    learning_rates: dict[str, float]


def save_checkpoint(path: str | os.PathLike[str], model: nn.Module, optimizer: Optimizers | None = None) -> None:
    """Write the weights and buffers of ``model``, and the state and learning rates of its torch optimizer(s).

    A file that was there is replaced in one step, when the new one is complete. Tied weights are written once. Raises
    ValueError for a parameter of the optimizer that is not the model's, and for names that begin with ``optimizer.``.
    """
    tensors = {uncompiled(name): tensor for name, tensor in _model_tensors(model).items()}
    if reserved := [name for name in tensors if name.startswith(OWN)]:
        raise ValueError(f"model: the name {reserved[0]!r} begins with {OWN!r}, which is for the optimizer's state")
    tensors.update(_optimizer_tensors(model, _several(optimizer)))
    target = Path(path)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        save_file({name: _writable(tensor) for name, tensor in tensors.items()}, partial, metadata={"format": "pt"})
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str], model: nn.Module, optimizer: Optimizers | None = None) -> None:
    """Bring ``model``, and its torch optimizer(s), to the state in the file; learning rates stay those of the groups.

    Raises SpecError, a ValueError with the name, shape and bound of each fault, and changes nothing, unless the file
    fits: as :func:`read_checkpoint`, and with an optimizer the state must be of its kind.
    """
    saved, optimizers = read_checkpoint(path, model), _several(optimizer)
    names = {p: name for name, p in model.named_parameters()}
    if optimizers:
        rules = rules_of_groups(optimizers, model)
        check_state(saved, model, lambda name: rules[name].keeps if name in rules else ())
    model.load_state_dict(saved.weights, strict=False)  # all are there: strict would ask for every name of tied ones
    for owner in optimizers:
        for p in [p for group in owner.param_groups for p in group["params"] if p in names]:
            owner.state[p] = {quantity: t.clone() for quantity, t in saved.state.get(names[p], {}).items()}


def read_checkpoint(path: str | os.PathLike[str], model: nn.Module) -> SavedState:
    """What the file holds for ``model``, which stays as it is.

    Raises SpecError, naming tensor, value and bound of each fault, if it is no safetensors file, lacks a tensor of the
    model or has one that is unknown, or has a tensor of another shape, of no real numbers or with one that is not
    finite. State that the optimizer does not keep is found by :func:`check_state`.
    """
    path = Path(path)
    if not path.is_file():
        raise SpecError([_fault(None, str(path), "an existing file is required")])
    try:
        with safe_open(path, framework="pt") as file:
            return _Reading(file, model).result()
    except (SafetensorError, OSError) as error:
        raise SpecError([_fault(None, path.name, f"must be a safetensors file ({error})")]) from None


def check_state(saved: SavedState, model: nn.Module, keeps: Callable[[str], Sequence[str]]) -> None:
    """Raise SpecError unless the state is that of an optimizer which ``keeps`` these quantities of a parameter.

    A parameter that trains has all of them and no others; or nothing, as before its first gradient.
    """
    faults = []
    for name, p in model.named_parameters():
        found = saved.state.get(name, {})
        if not found or not p.requires_grad:
            continue
        wanted = keeps(name)
        what = f"the optimizer keeps {' and '.join(wanted) or 'nothing'} of this parameter"
        faults += [_fault(f"{STATE}{name}.{q}", list(t.shape), what) for q, t in found.items() if q not in wanted]
        bound = "tensor required, of shape {}: " + what
        shapes = {q: [] if q == "step" else list(p.shape) for q in wanted if q not in found}
        faults += [_fault(f"{STATE}{name}.{q}", None, bound.format(shape)) for q, shape in shapes.items()]
    _refuse(faults)


class _Refused(Exception):
    """One tensor's fault."""

    def __init__(self, key: str, value: Any, bound: str) -> None:
        self.fault = _fault(key, value, bound)


class _Reading:
    """One file, checked against one model."""

    def __init__(self, file: Any, model: nn.Module) -> None:
        self._file = file
        self._expected = _model_tensors(model)
        first = {id(p): name for name, p in model.named_parameters()}
        tied = model.named_parameters(remove_duplicate=False)
        self._first = {uncompiled(name): first[id(p)] for name, p in tied}
        self._names = {uncompiled(name): name for name in self._expected} | self._first
        self._found = SavedState({}, {}, {})

    def result(self) -> SavedState:
        faults = []
        for key in self._file.keys():  # noqa: SIM118  (it is no dict)
            try:
                if key.startswith(STATE):
                    self._state(key)
                elif key.startswith(OWN):
                    self._rate(key)
                else:
                    self._weight(key)
            except _Refused as refused:
                faults.append(refused.fault)
        blamed = {uncompiled(fault.field) for fault in faults}
        for key, name in self._names.items():
            if name not in self._found.weights and f"checkpoint.{key}" not in blamed and uncompiled(name) == key:
                faults.append(_fault(key, None, f"tensor required, of shape {list(self._expected[name].shape)}"))
        _refuse(faults)
        return self._found

    def _weight(self, key: str) -> None:
        name = self._names.get(uncompiled(key))
        if name is None:
            raise self._unknown(key, "the model has no parameter or buffer of this name")
        if name in self._found.weights:
            raise self._unknown(key, "is tied to another tensor, which the file has too")
        self._found.weights[name] = self._tensor(key, self._expected[name])

    def _state(self, key: str) -> None:
        name, _, quantity = uncompiled(key).removeprefix(STATE).rpartition(".")
        if name not in self._first:
            raise self._unknown(key, f"the model has no parameter {name!r}")
        like = torch.zeros(()) if quantity == "step" else self._expected[self._first[name]]
        found = self._tensor(key, like, least=0.0 if quantity in ("step", "exp_avg_sq") else None)
        self._found.state.setdefault(self._first[name], {})[quantity] = found

    def _rate(self, key: str) -> None:
        name = uncompiled(key).removeprefix(RATES).removesuffix(".lr")
        if uncompiled(key) != f"{RATES}{name}.lr" or name not in self._first:
            known = f"{STATE}<parameter>.<quantity> and {RATES}<parameter>.lr"
            raise self._unknown(key, f"of the optimizer only {known} are known, of the model's parameters")
        found = self._tensor(key, torch.zeros((), dtype=torch.float64), least=0.0)
        self._found.learning_rates[self._first[name]] = float(found)

    def _tensor(self, key: str, like: Tensor, least: float | None = None) -> Tensor:
        """The tensor if it has the shape and kind of ``like``; on its device, in its dtype."""
        shape = list(self._file.get_slice(key).get_shape())  # needs no data
        if shape != list(like.shape):
            raise _Refused(key, shape, f"shape must be {list(like.shape)}")
        found: Tensor = self._file.get_tensor(key)
        if like.is_floating_point() and found.dtype not in FLOATS:
            raise _Refused(key, _dtype(found), "must be of real numbers")
        if not like.is_floating_point() and not torch.can_cast(found.dtype, like.dtype):
            raise _Refused(key, _dtype(found), f"dtype must be {_dtype(like)}")
        held = found.to(dtype=like.dtype)
        if not (finite := torch.isfinite(held)).all():
            index = [int(i) for i in torch.nonzero(~finite)[0]]
            value = found[tuple(index)]
            bound = f"beyond the range of {_dtype(like)}" if torch.isfinite(value) else "every entry must be finite"
            raise _Refused(key, f"{value.item()} at index {index}", bound)
        if least is not None and bool((found < least).any()):
            raise _Refused(key, float(found.min()), f"every entry must be ≥ {least:g}")
        return held.to(device=like.device)

    def _unknown(self, key: str, why: str) -> _Refused:
        return _Refused(key, list(self._file.get_slice(key).get_shape()), why)


def _fault(tensor: str | None, value: Any, bound: str) -> FieldError:
    return FieldError(field="checkpoint" if tensor is None else f"checkpoint.{tensor}", value=value, bound=bound)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _refuse(faults: list[FieldError]) -> None:
    if faults:
        raise SpecError(faults[:MOST_ERRORS], max(0, len(faults) - MOST_ERRORS))


def _several(optimizer: Optimizers | None) -> list[torch.optim.Optimizer]:
    if optimizer is None:
        return []
    return [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, each under its first name, and the buffers that a state dict has."""
    parameters = dict(model.named_parameters())
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor) and n not in every}
    return {**parameters, **state}


def _optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[tuple[str, Tensor]]:
    names = {p: name for name, p in model.named_parameters()}
    for p in (p for o in optimizers for group in o.param_groups for p in group["params"]):
        if p not in names:
            raise ValueError(f"optimizer: a parameter of shape {list(p.shape)} is none of the model's")
        for quantity, value in state_of(optimizers, p).items():
            if value is not None:  # the buffer of momentum 0
                if not isinstance(value, Tensor | float | int):
                    kind = type(value).__name__
                    raise ValueError(f"optimizer: what it keeps as {quantity!r} is a {kind}, which is no tensor")
                yield f"{STATE}{uncompiled(names[p])}.{quantity}", torch.as_tensor(value)
    for name, rate in learning_rates_of(optimizers, model).items():
        yield f"{RATES}{uncompiled(name)}.lr", torch.tensor(rate, dtype=torch.float64)


def _writable(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and sharing its memory with no other."""
    found = tensor.detach().cpu().contiguous()
    return found.clone() if found.untyped_storage().nbytes() != found.nbytes else found
