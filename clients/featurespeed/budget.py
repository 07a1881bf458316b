"""What a specification will cost, estimated in closed form before anything is built; knows no torch.

Everything is linear arithmetic on the specification's numbers: an answer takes microseconds, however large the network.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from featurespeed.contract.architecture import Architecture
from featurespeed.contract.data import Gaussian, Sphere, Tokens
from featurespeed.contract.job import FieldError
from featurespeed.contract.optimizer import Optimizer
from featurespeed.contract.request import JobRequest
from featurespeed.contract.validation import SpecError

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
ATTENTION_MATRICES = 4
"""Matrices of scores, (batch, heads, positions, positions), alive at once: weights, tangents of scores and weights, and
one on the way. Only one layer's are: the backward pass uses a kernel that does not keep them."""

SECOND_DERIVATIVE = 4
"""What second derivatives keep of the activations inside of a block, as a multiple of what a measurement does."""
SECOND_DERIVATIVE_ATTENTION = 8
"""Matrices of scores that they keep of every layer."""
SECOND_DERIVATIVE_BYTES = 2 * GIB
"""Second derivatives are taken of fewer examples at a time, rather than take more than this or than a measurement."""


@dataclass(frozen=True)
class Budget:
    """The most that one network (a cell of a job) may take.

    The defaults fit one large accelerator or a workstation: 2 billion parameters with gradients, directions and Adam's
    two moments in float32 are 45 GiB, which leaves room for activations within 64 GiB; but no more memory than this
    machine has.
    """

    max_parameters: int = 2_000_000_000
    max_memory_bytes: int = field(default_factory=lambda: min(64 * GIB, _machine_bytes()))


def _machine_bytes() -> int:
    """Physical memory, or what a container is allowed of it."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return 64 * GIB
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(physical, int(text)) if text.isdigit() else physical


@dataclass(frozen=True)
class Memory:
    """Estimated peak of a measurement in bytes, by what takes it."""

    parameters: int
    """Parameters, gradients, update directions and the optimizer's state."""
    activations: int
    """Features, backward passes and tangents, and what a backward pass keeps."""
    data: int
    """Batches, and what they are drawn from."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.parameters + self.activations + self.data


def estimate_memory(request: JobRequest) -> Memory:
    """The estimated peak of one cell, by part; measured peaks are within a factor of three."""
    size = DTYPE_BYTES[request.measurement.dtype]
    # parameters, gradients, directions, and one more while the next ones are made
    trains = request.measurement.steps > 0 or request.scaling.refine is not None
    copies = 4 + (_moments(request.optimizer) if trains else 0)
    twice = request.measurement.method == "double_backward"
    one = (_differentiated_twice if twice else _measured)(request.architecture)
    first = request.data.batch_size * one * size
    second = stability_examples(request) * _differentiated_twice(request.architecture) * size
    return Memory(
        parameters=request.architecture.parameter_count * copies * size,
        activations=max(first, second),
        data=_data_bytes(request),
    )


def stability_examples(request: JobRequest) -> int:
    """How many examples of a batch second derivatives are taken of at once; 0 if not asked for, or without room.

    Room for the whole batch is needed where examples see each other, and with dropout, whose mask is the batch's.
    """
    if not request.measures_stability:
        return 0
    size, batch = DTYPE_BYTES[request.measurement.dtype], request.data.batch_size
    allowed = max(batch * _measured(request.architecture) * size, SECOND_DERIVATIVE_BYTES)
    examples = min(batch, allowed // (_differentiated_twice(request.architecture) * size))
    whole = request.architecture.couples_examples or request.architecture.has_dropout
    return 0 if examples < batch and whole else examples


def memory_bytes(request: JobRequest) -> int:
    """The estimated peak of one cell in bytes, without the interpreter and its libraries."""
    return estimate_memory(request).total


def _moments(optimizer: Optimizer) -> int:
    if optimizer.name in ("sgd", "signsgd"):
        return 1 if optimizer.momentum > 0 else 0
    return 2  # Muon keeps one of a hidden matrix, but AdamW two of all else


def _measured(a: Architecture) -> int:
    """Numbers that one example keeps alive in a measurement."""
    return a.activations + ATTENTION_MATRICES * a.attention[1]


def _differentiated_twice(a: Architecture) -> int:
    """Numbers that one example keeps alive in a double backward pass."""
    layers, scores = a.attention
    return SECOND_DERIVATIVE * a.activations + SECOND_DERIVATIVE_ATTENTION * layers * scores


def _data_bytes(request: JobRequest) -> int:
    """Batches are drawn in float64 and int64, and copied while scaled; a dataset's file is not known here."""
    data, takes = request.data, request.architecture.signature
    if isinstance(data, Tokens):
        return 8 * (3 * (takes.vocab_size or 0) + 4 * data.batch_size * takes.inputs[0])
    if not isinstance(data, Gaussian | Sphere):
        return 0
    both = math.prod(takes.inputs) + takes.outputs
    teacher = 64 * both if data.targets == "teacher" else 0
    return 8 * (3 * data.batch_size * both + teacher)


def check_budget(request: JobRequest, budget: Budget) -> None:
    """Raise SpecError, with the estimate and the bound, if the request is over the budget.

    Blames ``architecture`` where its parameters alone are too many, else ``data.batch_size``.
    """
    parameters, memory = request.architecture.parameter_count, estimate_memory(request)
    if parameters > budget.max_parameters:
        raise _over("architecture", _count(parameters), f"at most {_count(budget.max_parameters)}")
    if memory.total <= budget.max_memory_bytes:
        return
    parts = f"parameters {_size(memory.parameters)}, activations {_size(memory.activations)}, data {_size(memory.data)}"
    one_example = (memory.activations + memory.data) // request.data.batch_size
    hopeless = memory.parameters + one_example > budget.max_memory_bytes
    field = "architecture" if hopeless or request.data.batch_size == 1 else "data.batch_size"
    value = f"{_size(memory.total)} of memory ({parts})"
    if field == "data.batch_size":
        value = f"{request.data.batch_size}: {value}"
    raise _over(field, value, f"at most {_size(budget.max_memory_bytes)}, by estimate")


def _over(field: str, value: str, bound: str) -> SpecError:
    return SpecError([FieldError(field=field, value=value, bound=bound)])


def _count(parameters: int) -> str:
    return f"{parameters:,} parameters"


def _size(n: int) -> str:
    return f"{n / GIB:,.2f} GiB" if n >= GIB else f"{n / 2**20:,.1f} MiB"
