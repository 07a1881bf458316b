"""A network of your own: recommend for it in this process, put the answer to use, train with it.

    python examples/own_module.py

The network is a small GPT for the bytes of a text, the source of Python's own argparse. Nothing is downloaded, and no
server is needed. Runs in seconds on a laptop.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurespeed.contract import AdamW
from featurespeed_workers import recommend

VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS, BATCH, STEPS = 128, 32, 64, 4, 2, 16, 50
TEXT = torch.tensor([b for b in Path(argparse.__file__).read_bytes() if b < VOCABULARY])


class Layer(nn.Module):
    """A pre-norm residual block: attention, then feed-forward. Its output is a cut node."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.expand = nn.Linear(WIDTH, 4 * WIDTH)
        self.contract = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, f: Tensor) -> Tensor:
        """(batch, positions, width) → the same."""
        batch, positions, width = f.shape
        qkv = self.qkv(self.norm_1(f)).view(batch, positions, 3, HEADS, width // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        f = f + self.projection(mixed.transpose(1, 2).reshape(batch, positions, width))
        out: Tensor = f + self.contract(F.gelu(self.expand(self.norm_2(f))))
        return out


class Gpt(nn.Module):
    """Token and position embeddings, ``LAYERS`` residual blocks, a norm and an untied head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(0.1 * torch.randn(CONTEXT, WIDTH))
        self.dropout = nn.Dropout(0.0)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.final_norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, positions) → logits (batch, positions, vocabulary)."""
        f = self.dropout(self.tokens(tokens) + self.positions)
        for layer in self.layers:
            f = layer(f)
        logits: Tensor = self.head(self.final_norm(f))
        return logits


def make_model(seed: int) -> Gpt:
    """A fresh network."""
    torch.manual_seed(seed)
    return Gpt()


def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of the text, and at each position the byte that comes next."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(TEXT) - CONTEXT, (BATCH, 1), generator=generator)
        piece = TEXT[starts + torch.arange(CONTEXT + 1)]
        yield piece[:, :-1], piece[:, 1:]


# Each block is named by the submodule whose output is its cut node, in forward order; listed behind it is what else
# belongs to it. The branches are the last linear maps of what a block adds to the residual stream.
BLOCKS = {
    "dropout": ["tokens", "positions"],
    **{f"layers.{i}": [] for i in range(LAYERS)},
    "head": ["final_norm"],
}
BRANCHES = {f"layers.{i}": [f"layers.{i}.projection", f"layers.{i}.contract"] for i in range(LAYERS)}


def main() -> None:
    """Ask, apply, train."""
    adamw = AdamW(name="adamw", betas=(0.9, 0.95), weight_decay=0.1)
    report = recommend(
        make_model, batches, loss="cross_entropy", optimizer=adamw, blocks=BLOCKS, branches=BRANCHES, seeds=(0, 1, 2)
    )
    advice = report.recommendation
    assert advice is not None
    for block in advice.blocks:
        print(f"{block.name:10} init std {block.init_std:.4f}   lr {block.lr:.3g}   {block.note or ''}")

    model = make_model(seed=3)
    report.apply(model)
    groups = report.param_groups(model)
    optimizer = torch.optim.AdamW(groups, betas=adamw.betas, weight_decay=adamw.weight_decay)
    warmup = max(1, round(advice.warmup_fraction * STEPS))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / (STEPS - warmup))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    stream = batches(3)
    for step in range(STEPS):
        inputs, targets = next(stream)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step:3}   loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
