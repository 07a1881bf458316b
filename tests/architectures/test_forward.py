"""The modules compute the formulas that the contract states: against NumPy, in float64, from the state dict."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from featurespeed.contract import Architecture, ConvNet, Mlp, ResNet, Transformer
from featurespeed_workers.architectures import build
from tests.architectures.cases import CASES, case_id, example_inputs

Array = NDArray[np.float64]
PHI: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "identity": lambda x: x,
}


class Reference:
    """The forward pass by hand: the output of every block."""

    def __init__(self, architecture: Architecture, state: dict[str, Any]) -> None:
        self.a: Any = architecture
        self.state = {name: value.double().numpy() for name, value in state.items()}
        self.phi = PHI[self.a.activation]

    def linear(self, name: str, x: Array) -> Array:
        y = np.einsum("oi,...i->...o", self.state[f"{name}.weight"], x)
        return y + self.state[f"{name}.bias"] if self.a.bias else y

    def norm(self, name: str, x: Array) -> Array:
        if self.a.norm == "none":
            return x
        gain = self.state[f"{name}.norm.weight"]
        if self.a.norm == "rmsnorm":
            eps = torch.finfo(torch.float64).eps
            return gain * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
        centred = x - x.mean(axis=-1, keepdims=True)
        y = gain * centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
        return y + self.state[f"{name}.norm.bias"] if self.a.bias else y

    def features(self, x: Any) -> list[Array]:
        names = self.a.block_names
        step = {ConvNet: self.convnet, Mlp: self.mlp, ResNet: self.resnet, Transformer: self.transformer}[type(self.a)]
        features = [x]
        for name in names:
            features.append(step(name, features[-1]))
        return features[1:]

    def mlp(self, name: str, f: Array) -> Array:
        if name == "input":
            return self.norm(name, self.linear(name, f))
        y = self.linear(name, self.phi(f))
        return y if name == "output" else self.norm(name, y)

    def resnet(self, name: str, f: Array) -> Array:
        assert isinstance(self.a, ResNet)
        if name == "input":
            return self.linear(name, f)
        if name == "output":
            return self.linear(name, self.norm(name, f))
        beta = self.a.beta
        shortcut = math.sqrt(1 - beta**2) if self.a.shortcut == "variance_preserving" else 1.0
        path = f"{name}.branch"
        return shortcut * f + beta * self.linear(path, self.phi(self.norm(path, f)))

    def convnet(self, name: str, f: Array) -> Array:
        assert isinstance(self.a, ConvNet)
        if name == "input":
            return self.convolution(name, f)
        if name == "output":
            return self.linear(name, self.phi(self.image_norm(f"{name}.norm", f)).mean(axis=(2, 3)))
        path = f"{name}.branch"
        stride = 2 if f"{name}.projection.weight" in self.state else 1
        hidden = self.convolution(f"{path}.conv_1", self.phi(self.image_norm(f"{path}.norm_1", f)), stride)
        branch = self.convolution(f"{path}.conv_2", self.phi(self.image_norm(f"{path}.norm_2", hidden)))
        if stride == 2:
            f = self.convolution(f"{name}.projection", f, stride)
        beta = self.a.beta
        return (math.sqrt(1 - beta**2) if self.a.shortcut == "variance_preserving" else 1.0) * f + beta * branch

    def convolution(self, name: str, x: Array, stride: int = 1) -> Array:
        weight = self.state[f"{name}.weight"]
        k = weight.shape[-1]
        padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(2, 3))[:, :, ::stride, ::stride]
        y = np.einsum("oipq,bihwpq->bohw", weight, windows)
        return y + self.state[f"{name}.bias"][:, None, None] if self.a.bias else y

    def image_norm(self, name: str, x: Array) -> Array:
        """By channel over batch and pixels, or by example over the channels and pixels of a group."""
        if self.a.norm == "none":
            return x
        batch, channels, *pixels = x.shape
        grouped = x.reshape(batch, self.a.groups or channels, -1, *pixels)
        axes = (0, 2, 3, 4) if self.a.norm == "batchnorm" else (2, 3, 4)
        mean, var = grouped.mean(axis=axes, keepdims=True), grouped.var(axis=axes, keepdims=True)
        normed = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
        return normed * self.state[f"{name}.weight"][:, None, None] + self.state[f"{name}.bias"][:, None, None]

    def transformer(self, name: str, f: Any) -> Array:
        assert isinstance(self.a, Transformer)
        if name == "input":
            return self.embed(f) + self.state["input.position"]
        if name == "output":
            f = self.norm(name, f)
            return self.linear(name, f if self.a.output_dim is None else f.mean(axis=1))
        f = f + self.attention(f"{name}.attention", f)
        path = f"{name}.mlp"
        hidden = self.phi(self.linear(f"{path}.expand", self.norm(path, f)))
        return f + self.linear(f"{path}.project", hidden)

    def embed(self, x: Any) -> Array:
        assert isinstance(self.a, Transformer)
        if self.a.image is None:
            return self.state["input.embedding.weight"][x]
        p = self.a.image.patch
        patches = [
            x[:, :, i : i + p, j : j + p].reshape(len(x), -1)
            for i in range(0, self.a.image.height, p)
            for j in range(0, self.a.image.width, p)
        ]
        return self.linear("input.embedding", np.stack(patches, axis=1))

    def attention(self, path: str, f: Array) -> Array:
        assert isinstance(self.a, Transformer)
        size = self.a.width // self.a.heads
        qkv = np.split(self.linear(f"{path}.qkv", self.norm(path, f)), 3, axis=-1)
        q, k, v = (t.reshape(*t.shape[:2], self.a.heads, size) for t in qkv)
        scores = np.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(size)
        if self.a.is_causal:
            later = np.triu(np.ones(scores.shape[-2:], dtype=bool), k=1)
            scores = np.where(later, -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return self.linear(f"{path}.projection", np.einsum("bhij,bjhd->bihd", weights, v).reshape(f.shape))


@pytest.mark.parametrize("architecture", CASES, ids=case_id)
def test_every_block_is_its_formula(architecture: Architecture) -> None:
    module = build(architecture, seed=5).module.double()
    with torch.no_grad():
        for parameter in module.parameters():  # gains and biases other than 1 and 0
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.3)
    x = example_inputs(architecture)
    expected = Reference(architecture, module.state_dict()).features(x.numpy())
    f = x
    with torch.no_grad():
        for (name, block), reference in zip(module.named_children(), expected, strict=True):
            f = block(f)
            np.testing.assert_allclose(f.numpy(), reference, rtol=1e-10, atol=1e-11, err_msg=name)
        np.testing.assert_allclose(module(x).numpy(), expected[-1], rtol=1e-10, atol=1e-11)
