"""What is found of a checkpoint without its architecture, and without torch."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from featurespeed.contract import SpecError
from featurespeed_workers import save_checkpoint
from featurespeed_workers.checkpoint_files import check_checkpoint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_saved_passes(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    save_checkpoint(tmp_path / "a.safetensors", model, optimizer)
    check_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        (torch.tensor([[0.0, 1.0], [torch.inf, 2.0]]), "inf at index [1, 0]"),
        (torch.tensor(torch.nan, dtype=torch.float64), "nan at index [0]"),
        (torch.ones(3, dtype=torch.complex64), "C64"),
    ],
)
def test_what_is_no_number_is_named(tensor: torch.Tensor, value: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(0), "b.weight": tensor}, tmp_path / "a.safetensors")
    with pytest.raises(SpecError) as caught:
        check_checkpoint(tmp_path / "a.safetensors")
    [fault] = caught.value.errors
    assert (fault.field, fault.value) == ("checkpoint.b.weight", value)
