"""Checkpoints on disk, by themselves: what can be said of one without its architecture. Knows no torch."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from featurespeed.contract import FieldError, SpecError
from featurespeed_workers.dataset_files import FLOATS, value_range

UNREADABLE = "BF16"
"""NumPy has no such numbers: who loads the checkpoint checks that they are finite."""
OTHERS = (UNREADABLE, "I8", "I16", "I32", "I64", "U8", "BOOL")


def check_checkpoint(path: Path) -> None:
    """Check a file on its own; raises SpecError naming tensor, value and bound."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys())
            if not names:
                raise SpecError([FieldError(field="checkpoint", value=path.name, bound="must have tensors")])
            for name in names:
                tensor = file.get_slice(name)
                dtype = tensor.get_dtype()
                if dtype not in (*FLOATS, *OTHERS):
                    bound = "dtype must be one of bfloat16, float16, float32 and float64, or integers for buffers"
                    raise SpecError([FieldError(field=f"checkpoint.{name}", value=dtype, bound=bound)])
                if dtype in FLOATS and 0 not in (shape := tuple(tensor.get_shape())):
                    values = tensor if shape else file.get_tensor(name).reshape(1)
                    value_range(values, shape or (1,), f"checkpoint.{name}")
    except (SafetensorError, OSError) as error:
        bound = f"must be a safetensors file ({error})"
        raise SpecError([FieldError(field="checkpoint", value=path.name, bound=bound)]) from None
