"""Networks written by hand, with the blocks that a person would name and what each owns besides its module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualMlp(nn.Module):
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

        def forward(self, f: Tensor) -> Tensor:
            return f + self.b(torch.tanh(self.a(f)))

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(6, 8)
        self.blocks = nn.Sequential(*(self.Block(8) for _ in range(3)))
        self.output = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.blocks(self.input(x)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, f: Tensor) -> Tensor:
        batch, positions, width = f.shape
        q, k, v = self.qkv(f).view(batch, positions, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, positions, width))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, f: Tensor) -> Tensor:
        f = f + self.attn(self.ln_1(f))
        return f + self.mlp(self.ln_2(f))


class Gpt(nn.Module):
    """Token and position embeddings, pre-norm blocks, a final norm and a head, in a body as Hugging Face has them."""

    def __init__(self, layers: int = 3, width: int = 8) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(11, width),
                "wpe": nn.Embedding(7, width),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList(Layer(width) for _ in range(layers)),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, 11, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        t = self.transformer
        f = t["drop"](t["wte"](tokens) + t["wpe"](torch.arange(tokens.shape[1], device=tokens.device)))
        for layer in t["h"]:
            f = layer(f)
        return self.lm_head(t["ln_f"](f))


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, 2)
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 17, 8))
        self.dropout = nn.Dropout(0.1)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        f = self.patches(images).flatten(2).transpose(1, 2)
        f = torch.cat([self.class_token.expand(len(f), -1, -1), f], dim=1)
        f = self.dropout(f + self.positions)
        for layer in self.encoder:
            f = layer(f)
        return self.head(self.norm(f)[:, 0])


class BasicBlock(nn.Module):
    """He et al.'s, as torchvision has it: batch norm, a convolution beside it, changes in place."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(BasicBlock(4, 4, 1), BasicBlock(4, 4, 1))
        self.layer2 = nn.Sequential(BasicBlock(4, 6, 2), BasicBlock(6, 6, 1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer2(self.layer1(x))).flatten(1))


class Unet(nn.Module):
    """A long skip from ``stem`` to ``merge``: nothing between is a cut node, residual blocks or not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.down = nn.Sequential(nn.Conv2d(4, 6, 2, 2), BasicBlock(6, 6, 1))
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.merge = nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = self.stem(x)
        return self.head(F.relu(self.merge(torch.cat([f, self.up(self.down(f))], dim=1))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))


@dataclass(frozen=True)
class Case:
    make: type[nn.Module] | object
    inputs: Tensor
    by_hand: Mapping[str, Sequence[str]]


def _images() -> Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


CASES = {
    "mlp": Case(mlp, torch.randn(4, 6), {"0": [], "2": [], "5": []}),
    "residual mlp": Case(
        ResidualMlp, torch.randn(4, 6), {"input": [], **{f"blocks.{i}": [] for i in range(3)}, "output": []}
    ),
    "gpt": Case(
        Gpt,
        torch.arange(14).reshape(2, 7) % 11,
        {
            "transformer.drop": ["transformer.wte", "transformer.wpe"],
            **{f"transformer.h.{i}": [] for i in range(3)},
            "lm_head": ["transformer.ln_f"],
        },
    ),
    "vit": Case(
        Vit,
        _images(),
        {
            "dropout": ["patches", "class_token", "positions"],
            "encoder.0": [],
            "encoder.1": [],
            "head": ["norm"],
        },
    ),
    "resnet": Case(
        ResNet,
        _images(),
        {"bn1": ["conv1"], "layer1.0": [], "layer1.1": [], "layer2.0": [], "layer2.1": [], "fc": []},
    ),
    "unet": Case(Unet, _images(), {"stem": [], "merge": ["down", "up"], "head": []}),
}
