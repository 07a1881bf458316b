"""Make training.safetensors, a training in its middle (resume_digits.yaml), beside this script.

The network of resume_digits.yaml from PyTorch's initialization, after 60 steps of AdamW at one rate for all, 0.001.

    python examples/make_checkpoint.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import yaml
from sklearn.datasets import load_digits
from torch import nn

from featurespeed.contract import parse_request
from featurespeed_workers import save_checkpoint
from featurespeed_workers.architectures import build

STEPS = 60


def main(path: Path) -> None:
    """Train, and write weights, buffers and AdamW's state."""
    spec = yaml.safe_load(Path(__file__).with_name("resume_digits.yaml").read_text())
    del spec["checkpoint"]  # it is to be made
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor((pixels - pixels.mean()) / pixels.std(), dtype=torch.float32).reshape(-1, 1, 8, 8)
    targets = torch.tensor(labels)
    model = build(parse_request(spec).architecture, seed=0).module
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        chosen = torch.randperm(len(images), generator=generator)[:128]
        loss = nn.functional.cross_entropy(model(images[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_checkpoint(path, model, optimizer)
    print(f"{path}: loss {loss.item():.3g} after {STEPS} steps", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("training.safetensors"))
