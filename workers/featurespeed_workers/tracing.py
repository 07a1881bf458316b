"""One forward pass of a module, traced by ``torch.export``: with fake tensors, so without memory or computation.

Submodule outputs are told apart by a hook on each, which passes its output through an operator that does nothing but
leave its name in the graph.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featurespeed_workers.dataflow import Dataflow
from featurespeed_workers.eager import as_written
from featurespeed_workers.graph_reading import OUTPUT_OF, dataflow_of
from featurespeed_workers.passes import Inputs

BY_HAND = "name the cut nodes by hand: blocks=[names of submodules in forward order, each of whose outputs is one]"


def trace(module: nn.Module, inputs: Inputs) -> Dataflow:
    """The dataflow of the module's pass on ``inputs``. Neither the module nor the global random state changes.

    Signals are real numbers: an integer or boolean tensor (tokens, a mask) carries none, but what is looked up by it in
    a parameter does. Raises ValueError if the module cannot be traced, saying why in one line.
    """
    arguments, keywords = ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
    try:
        with (
            as_written(),
            _marked(module),
            _quiet(),
            torch.random.fork_rng(range(torch.cuda.device_count())),
            torch.enable_grad(),
        ):
            program = torch.export.export(module, arguments, keywords, strict=False)
    except Exception as error:  # torch.export raises what it meets, errors of the module itself included
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        raise ValueError(f"blocks: the module cannot be traced ({reason}); {BY_HAND}") from error
    first_names = {id(p): name for name, p in module.named_parameters()}
    names = dict(module.named_parameters(remove_duplicate=False))
    parameters = {
        node: first_names[id(names[path])] for node, path in program.graph_signature.inputs_to_parameters.items()
    }
    return dataflow_of(program.graph_module, parameters, program.graph_signature.user_inputs)


@contextlib.contextmanager
def _marked(module: nn.Module) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for path, part in module.named_modules():
            if path and not isinstance(part, torch.jit.ScriptModule):
                stack.callback(part.register_forward_hook(_marker(path)).remove)
        yield


def _marker(path: str) -> Any:
    def mark(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return None
        marked = OUTPUT_OF(first, path)
        if not isinstance(output, tuple):
            return marked
        kind = type(output)
        return kind(marked, *output[1:]) if hasattr(output, "_fields") else (marked, *output[1:])

    return mark


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export prints and logs what it stumbles over; it is told in the error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
