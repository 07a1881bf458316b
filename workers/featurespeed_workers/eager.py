"""Modules as they were written: what was compiled, or checkpointed such that only the gradient can be had."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

ALONE = threading.RLock()
"""Held by who measures or traces: forward mode, torch's switches and its random state are the process's."""


def as_given_to_compile(module: nn.Module) -> nn.Module:
    """The module behind ``torch.compile(module)``, whose parameters have their names without ``_orig_mod.``."""
    while type(module).__name__ == "OptimizedModule":
        module = module.get_submodule("_orig_mod")
    return module


def uncompiled(name: str) -> str:
    """The name of a parameter or buffer without what ``torch.compile`` of the model, or of a part, puts into it."""
    return name.replace("_orig_mod.", "")


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Within, all that ``torch.compile`` has made runs uncompiled, and reentrant checkpointing is of the other kind.

    Compiled code knows neither our hooks nor forward mode. Reentrant checkpointing refuses ``torch.autograd.grad``, and
    hides a segment's graph; the other kind saves the same memory and draws the same dropout.
    """
    with ALONE:
        reentrant = torch.utils.checkpoint.CheckpointFunction
        torch.utils.checkpoint.CheckpointFunction = _NotReentrant  # type: ignore[misc, assignment]
        # without dynamo nothing can have been compiled, and its import takes a second
        eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
        try:
            with eager:
                yield
        finally:
            torch.utils.checkpoint.CheckpointFunction = reentrant  # type: ignore[misc]


class _NotReentrant:
    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )
