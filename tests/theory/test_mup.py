"""Rule ``mup`` against the ``mup`` package itself: the same initial scales, and training that is the same net.

The package puts 1/m̃ into the output as a multiplier (Table 8); the rule puts it into scale and rate (Table 3). Weights
w of the one are m̃ w of the other there, and all else is equal.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mup
import pytest
import torch
from torch import Tensor, nn

from featurespeed.contract import Report, parse_request
from featurespeed_workers.architectures import build
from featurespeed_workers.architectures.layers import POSITION_STD
from featurespeed_workers.local import answer

BASE, WIDTH, OTHER = 16, 40, 24
MLP = {"family": "mlp", "input_dim": 6, "depth": 4, "output_dim": 3, "bias": True, "norm": "layernorm"}
RESNET = {"family": "resnet", "input_dim": 6, "depth": 4, "output_dim": 3, "bias": True, "norm": "layernorm"}
LANGUAGE = {
    "family": "transformer", "layers": 2, "heads": 2, "vocab_size": 7, "context_length": 5, "bias": True,
    "mlp_ratio": 2.0, "activation": "relu",
}  # fmt: skip
PLAIN = {**RESNET, "bias": False, "norm": "none", "activation": "tanh"}
FAMILIES = {"mlp": MLP, "resnet": RESNET, "transformer": LANGUAGE, "plain": PLAIN}
EPS = 1e-30
"""Adam's eps, which is added to gradients of another scale in the two forms."""


def spec(family: dict[str, Any], width: int, optimizer: str, **fields: Any) -> dict[str, Any]:
    data = {"kind": "tokens"} if "vocab_size" in family else {"kind": "gaussian", "targets": "classes"}
    return {
        "kind": "recommend",
        "architecture": {**family, "width": width},
        "data": {**data, "batch_size": 4},
        "loss": "cross_entropy",
        "optimizer": {"name": optimizer},
        "scaling": {"rule": "mup", "base_width": BASE},
        "measurement": {"seeds": [0], "dtype": "float64"},
        **fields,
    }


def network(family: dict[str, Any], width: int) -> nn.Module:
    return build(parse_request(spec(family, width, "sgd")).architecture, seed=3).module.double()


class Readout(mup.MuReadout):
    """The package's output layer in the place of ours: what comes before the matrix stays."""

    def __init__(self, ours: nn.Linear) -> None:
        super().__init__(ours.in_features, ours.out_features, bias=ours.bias is not None, dtype=torch.float64)
        self.before = nn.Sequential(ours.norm)
        self.activation = ours.activation

    def forward(self, f: Tensor) -> Tensor:
        return super().forward(self.activation(self.before(f)))


def package_network(family: dict[str, Any], width: int) -> nn.Module:
    """Our network with the package's output layer and shapes; its weights are not rescaled."""
    base, delta, model = (network(family, w) for w in (BASE, OTHER, width))
    for each in (base, delta, model):
        each.output = Readout(each.output)
    return mup.set_base_shapes(model, base, delta=delta, rescale_params=False)


def batches(family: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    if "vocab_size" in family:
        return [(torch.randint(0, 7, (4, 5)), torch.randint(0, 7, (4, 5))) for _ in range(4)]
    return [(torch.randn(4, 6, dtype=torch.float64), torch.randint(0, 3, (4,))) for _ in range(4)]


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]) -> list[float]:
    found = []
    for inputs, targets in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
        loss.backward()
        found.append(loss.item())
        optimizer.step()
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_that_of_the_package(family: str, optimizer: str) -> None:
    """The same net at width 40 and base width 16, by report.param_groups and by MuSGD, MuAdam and MuAdamW."""
    shape, rate = FAMILIES[family], {"sgd": 0.3, "adam": 0.03, "adamw": 0.03}[optimizer]
    report = answer(parse_request(spec(shape, WIDTH, optimizer)))
    ours, theirs = network(shape, WIDTH), package_network(shape, WIDTH)
    report.apply(ours)
    with torch.no_grad():
        source = {name.replace("output.norm", "output.before.0"): p for name, p in ours.named_parameters()}
        for name, p in theirs.named_parameters():
            p.copy_(source[name] * (WIDTH / BASE if name == "output.weight" else 1.0))
    options = {} if optimizer == "sgd" else {"eps": EPS}
    groups = [{**g, "lr": g["lr"] / 1e-3 * rate} for g in report.param_groups(ours)]  # 0.001 at the base width
    own = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    package = {"sgd": mup.MuSGD, "adam": mup.MuAdam, "adamw": mup.MuAdamW}[optimizer]
    options["weight_decay"] = 0.0
    data = batches(shape)
    expected = losses(theirs, package(theirs.parameters(), lr=rate, **options), data)
    found = losses(ours, own(groups, **options), data)
    assert found == pytest.approx(expected, rel=1e-9)
    assert min(abs(a - b) for a, b in pairwise(expected)) > 1e-3  # it did train


@pytest.mark.parametrize("width", [WIDTH, BASE, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_initial_scales_are_those_of_the_package(family: str, width: int) -> None:
    """The package's own initializers, told the base's: fan-in for matrices, a constant for embeddings."""
    shape = FAMILIES[family]
    report = answer(parse_request(spec(shape, width, "sgd")))
    found = {p.name: p.init_std for p in report.recommendation.parameters if len(p.shape) == 2}
    theirs = package_network(shape, width)
    expected = {}
    for name, p in theirs.named_parameters():
        if p.ndim == 2:
            torch.manual_seed(0)
            _initialize(shape, name, p)
            torch.manual_seed(0)
            std = float(p.detach().norm() / torch.randn(p.shape, dtype=torch.float64).norm())
            expected[name] = std / (width / BASE) if name == "output.weight" else std
    assert found == pytest.approx(expected, rel=1e-9)


def _initialize(shape: dict[str, Any], name: str, p: nn.Parameter) -> None:
    if name == "input.position":
        mup.init.normal_(p, std=POSITION_STD)
    elif name == "input.embedding.weight" and "vocab_size" in shape:
        mup.init.normal_(p, std=1.0)
    else:
        active = name.endswith("mlp.project.weight") if "layers" in shape else name.startswith("hidden")
        relu = active and shape.get("activation", "relu") == "relu"
        mup.init.kaiming_normal_(p, nonlinearity="relu" if relu else "linear")


def test_signsgd_has_the_rates_of_adam_and_frozen_blocks_none() -> None:
    def rates(report: Report) -> dict[str, float]:
        return {p.name: p.lr for p in report.recommendation.parameters}

    adam, sign = (rates(answer(parse_request(spec(LANGUAGE, WIDTH, name)))) for name in ("adam", "signsgd"))
    assert sign == adam
    frozen = rates(answer(parse_request(spec(LANGUAGE, WIDTH, "adam", frozen=["hidden_2", "output"]))))
    assert frozen == {n: 0.0 if n.startswith(("hidden_2", "output")) else lr for n, lr in adam.items()}
