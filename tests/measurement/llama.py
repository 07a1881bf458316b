"""A llama-shaped network written by hand: rotary positions, grouped-query attention, gated feed-forward, RMS norms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, groups * self.size, bias=False)
        self.v_proj = nn.Linear(width, groups * self.size, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, positions, _ = x.shape
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x).view(batch, positions, -1, self.size).transpose(1, 2) for p in projections)
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        k, v = (y.repeat_interleave(self.heads // self.groups, 1) for y in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, positions, -1))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj, self.act = nn.Linear(hidden, width, bias=False), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(width, heads, groups), FeedForward(width, hidden)
        self.input_layernorm, self.post_attention_layernorm = Norm(width), Norm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        size = width // heads
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads, groups, hidden) for _ in range(layers))
        self.norm = Norm(width)
        self.register_buffer("frequencies", 1 / (10000 ** (torch.arange(0, size, 2) / size)))

    def forward(self, tokens: Tensor) -> Tensor:
        phases = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * self.frequencies
        phases = torch.cat((phases, phases), -1)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, phases.cos(), phases.sin())
        return self.norm(x)


class Llama(nn.Module):
    def __init__(
        self, vocabulary: int = 32_000, width: int = 4096, layers: int = 96, heads: int = 32, groups: int = 8,
        hidden: int = 14_336,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = Body(vocabulary, width, layers, heads, groups, hidden)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.model(tokens))
