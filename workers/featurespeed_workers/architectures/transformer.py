"""The pre-norm transformer. f: (batch, positions, width) at every cut node but the last, the logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurespeed.contract import Patches, Transformer
from featurespeed.contract.architecture import Activation, Norm
from featurespeed_workers.architectures.layers import ACTIVATIONS, PreLinear, chain_network, make_norm
from featurespeed_workers.network import Network, Scalable


def patches_of(x: Tensor, image: Patches) -> Tensor:
    """Images (batch, channels, height, width), or flattened (batch, pixels), → (batch, patches, channels · patch²).

    Patches come row by row; within one the order is channel, row, column.
    """
    p, rows, columns = image.patch, image.height // image.patch, image.width // image.patch
    x = x.reshape(-1, image.channels, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, rows * columns, image.channels * p * p)


class TokenInput(nn.Module):
    """The embedding of each token plus a learned vector of its position."""

    def __init__(self, vocab_size: int, context_length: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(torch.randn(context_length, width))  # as nn.Embedding's default

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, positions) integers → (batch, positions, width); fewer positions than the context has will do."""
        out: Tensor = self.embedding(tokens) + self.position[: tokens.shape[1]]
        return out


class PatchInput(nn.Module):
    """A linear map of each image patch plus a learned vector of its position."""

    def __init__(self, image: Patches, width: int, *, bias: bool) -> None:
        super().__init__()
        self.image = image
        self.embedding = nn.Linear(image.channels * image.patch**2, width, bias=bias)
        self.position = nn.Parameter(torch.randn(image.count, width))  # as nn.Embedding's default

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) or (batch, pixels) → (batch, patches, width)."""
        out: Tensor = self.embedding(patches_of(x, self.image)) + self.position
        return out


class Attention(nn.Module):
    """Multi-head self-attention of the normalised stream: one residual branch."""

    def __init__(self, width: int, heads: int, *, causal: bool, norm: Norm, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm = make_norm(norm, width, bias=bias)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.projection = nn.Linear(width, width, bias=bias)

    def forward(self, f: Tensor) -> Tensor:
        """(batch, positions, width) → the same."""
        batch, positions, width = f.shape
        qkv: Tensor = self.qkv(self.norm(f))
        # each of q, k, v: (batch, heads, positions, width / heads)
        q, k, v = qkv.view(batch, positions, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.projection(mixed.transpose(1, 2).reshape(batch, positions, width))
        return out


class FeedForward(nn.Module):
    """``W_2 φ(W_1 norm(f))`` at each position: one residual branch."""

    def __init__(self, width: int, hidden: int, *, activation: Activation, norm: Norm, bias: bool) -> None:
        super().__init__()
        self.norm = make_norm(norm, width, bias=bias)
        self.expand = nn.Linear(width, hidden, bias=bias)
        self.project = nn.Linear(hidden, width, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, f: Tensor) -> Tensor:
        """(batch, positions, width) → the same."""
        out: Tensor = self.project(self.activation(self.expand(self.norm(f))))
        return out


class TransformerBlock(nn.Module):
    """``f + attention(f)``, then ``+ mlp`` of that sum: one block, cut at its end."""

    def __init__(self, attention: Attention, mlp: FeedForward) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = mlp

    def forward(self, f: Tensor) -> Tensor:
        """(batch, positions, width) → the same."""
        f = f + self.attention(f)
        out: Tensor = f + self.mlp(f)
        return out


class ClassifierHead(PreLinear):
    """``W`` of the mean over positions of ``norm(f)``."""

    def forward(self, f: Tensor) -> Tensor:
        """(batch, positions, width) → (batch, classes)."""
        return F.linear(self.norm(f).mean(dim=1), self.weight, self.bias)


def _make_input(a: Transformer) -> nn.Module:
    if a.image is not None:
        return PatchInput(a.image, a.width, bias=a.bias)
    assert a.vocab_size is not None  # the contract requires both without image
    assert a.context_length is not None
    return TokenInput(a.vocab_size, a.context_length, a.width)


def transformer_network(architecture: Transformer) -> Network:
    """A transformer; a cut node is the residual stream after a block."""
    a = architecture
    blocks: dict[str, nn.Module] = {"input": _make_input(a)}
    for name in a.block_names[1:-1]:
        blocks[name] = TransformerBlock(
            Attention(a.width, a.heads, causal=a.is_causal, norm=a.norm, bias=a.bias),
            FeedForward(a.width, a.mlp_width, activation=a.activation, norm=a.norm, bias=a.bias),
        )
    head = PreLinear if a.output_dim is None else ClassifierHead
    blocks["output"] = head(a.width, a.head_dim, activation="identity", norm=a.norm, bias=a.bias)
    return chain_network(blocks, lambda block: _scalables(block, a.layers))


def _scalables(block: str, layers: int) -> tuple[Scalable, ...]:
    """Embedding and positions as one; the last matrix of each residual branch; the head.

    A branch is brought to rms ``1/sqrt(2 · layers)``: all of them together add a mean square of 1 to the stream.
    """
    if block == "input":
        return (Scalable(module=block, parameters=("input.embedding.weight", "input.position")),)
    if block == "output":
        return (Scalable(module=block, parameters=("output.weight",)),)
    rms = 1 / math.sqrt(2 * layers)
    last = (f"{block}.attention.projection", f"{block}.mlp.project")
    return tuple(Scalable(module=path, parameters=(f"{path}.weight",), target_rms=rms) for path in last)
