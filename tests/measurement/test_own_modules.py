"""``measure`` and ``recommend`` on modules of the user's own: nothing of theirs changes, and misuse is named."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurespeed.defaults import FEATURE_STEPS, RELATIVE_SENSITIVITY
from featurespeed_workers import MeasurementError, measure, network_of, recommend
from featurespeed_workers.losses import own_loss
from tests.measurement.identity import same


class Residual(nn.Module):
    """A block with what makes restoring hard: batch norm (buffers), dropout (randomness), fused attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.flatten(0, 1)).view_as(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        return x + self.out(self.dropout(y))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.position = nn.Parameter(torch.randn(5, 8) * 0.1)
        self.drop = nn.Dropout(0.1)
        self.layers = nn.ModuleList([Residual(8) for _ in range(2)])
        self.final = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.tokens(x) + self.position)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.final(x).mean(1))


BLOCKS = {"drop": ["tokens", "position"], "layers.0": [], "layers.1": [], "head": ["final"]}
BRANCHES = {"layers.0": ["layers.0.out"], "layers.1": ["layers.1.out"]}


@pytest.fixture
def own() -> Own:
    torch.manual_seed(0)
    return Own()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randint(0, 11, (6, 5), generator=generator), torch.randint(0, 3, (6,), generator=generator))
        for _ in range(4)
    ]


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    return copy.deepcopy(
        {
            "state": model.state_dict(),
            "grads": {n: p.grad for n, p in model.named_parameters()},
            "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "training": [m.training for m in model.modules()],
            "hooks": [len(m._forward_hooks) for m in model.modules()],
        }
    )


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_everything_is_as_it_was_to_the_bit(own, batches, kind) -> None:
    momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(own.parameters(), lr=0.01, **momentum)
    for inputs, targets in batches:  # gradients, moments and running statistics that could be lost
        optimizer.zero_grad()
        nn.functional.cross_entropy(own(inputs), targets).backward()
        optimizer.step()
    before = everything(own, optimizer)
    measure(own, batches, optimizer=optimizer, blocks=BLOCKS, learning_rates="optimizer")
    assert same(everything(own, optimizer), before)
    recommend(own, batches, optimizer=optimizer, blocks=BLOCKS, branches=BRANCHES)
    assert same(everything(own, optimizer), before)


def test_dropout_and_batch_norm_are_the_same_in_both_passes(own, batches) -> None:
    """The two sides agree only if the second pass sees the first one's masks and statistics."""
    own.double()
    report = measure(own, batches, blocks=BLOCKS)
    assert report.measurements[0].method == "exact"
    assert report.measurements[0].formula_residual < 1e-10


def test_learning_rates_of_the_optimizer_are_those_of_its_groups(own, batches) -> None:
    own.double().eval()
    groups = [
        {"params": own.head.parameters(), "lr": 0.5},
        {"params": [*own.layers.parameters(), *own.final.parameters()]},
        {"params": [*own.tokens.parameters(), own.position], "lr": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.25)
    layers = (
        measure(own, batches, blocks=BLOCKS, optimizer=optimizer, learning_rates="optimizer").measurements[0].layers
    )
    assert layers[0].contribution.mean == 0
    assert layers[0].angle.mean is None  # it does not move
    assert layers[1].contribution.mean == pytest.approx(0.25 * layers[1].gradient_norm.mean ** 2)
    loss = nn.functional.cross_entropy(own(batches[0][0]), batches[0][1])
    head = torch.autograd.grad(loss, [*own.head.parameters(), *own.final.parameters()])
    squares = [float((g**2).sum()) for g in head]
    assert layers[3].contribution.mean == pytest.approx(0.5 * sum(squares[:2]) + 0.25 * sum(squares[2:]))


def test_recommendation_reaches_its_targets_on_the_model_it_is_applied_to(own, batches) -> None:
    """Apply the answer, then measure with plain torch: rms of the branches, τ, the decay of the loss."""
    own.eval()
    report = recommend(own, batches, optimizer="sgd", blocks=BLOCKS, branches=BRANCHES, relative_sensitivity=0.5)
    report.apply(own)
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            outputs[name] = output

        return hook

    names = ["drop", "layers.0.out", "layers.1.out", "layers.1"]
    handles = [own.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    with torch.no_grad():
        own(torch.cat([x for x, _ in batches]))
    for handle in handles:
        handle.remove()
    target = {"drop": 1.0, "layers.0.out": 1 / math.sqrt(2), "layers.1.out": 1 / math.sqrt(2), "layers.1": math.sqrt(2)}
    for name, rms in target.items():
        # the stream is the sum of three nearly independent terms, the others are scaled themselves
        tolerance = 0.35 if name == "layers.1" else 0.02
        assert float(outputs[name].pow(2).mean().sqrt()) == pytest.approx(rms, rel=tolerance)
    rates = {g["name"]: g["lr"] for g in report.param_groups(own)}
    after = measure(own, batches, optimizer="sgd", blocks=BLOCKS, learning_rates=rates).measurements[0]
    master = report.recommendation.master_lr
    assert master == pytest.approx(FEATURE_STEPS["sgd"] / 0.5)
    assert after.loss_decay / master == pytest.approx(1.0, rel=0.5)  # one batch of six against the mean over four
    assert report.recommendation.relative_sensitivity == pytest.approx(0.5, rel=0.02)


def test_several_seeds_come_from_a_function(batches) -> None:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Embedding(11, 8), nn.Flatten(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3))

    report = recommend(build, lambda seed: batches[seed:], seeds=(0, 1))
    assert report.provenance.seeds == (0, 1)
    first, second = report.recommendation.blocks[0].lr_over_seeds.values
    assert first != second
    assert report.recommendation.blocks[0].lr == pytest.approx(math.sqrt(first * second))


class Cumulative(torch.autograd.Function):
    """An operator of the user's own, without a forward-mode rule."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


class Doubled(nn.Linear):
    def forward(self, x):
        return Cumulative.apply(super().forward(x))


def test_an_operator_without_forward_mode_falls_back_and_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Doubled(8, 3)).double()
    report = measure(model, [(torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1]))])
    assert report.measurements[0].method == "double_backward"
    assert report.measurements[0].formula_residual < 1e-12


@pytest.mark.parametrize("tau", [0.01, 5.0])
def test_norm_after_the_output_cannot_reach_the_target(tau: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Sequential(nn.ReLU(), nn.Linear(32, 3, bias=False), nn.LayerNorm(3)))
    data = [(torch.randn(16, 4), torch.randint(0, 3, (16,))) for _ in range(4)]
    report = recommend(model, data, optimizer="sgd", relative_sensitivity=tau)
    [warning] = report.warnings
    assert f"no scale of block '1' was found that reaches the relative sensitivity {tau:.3g}" in warning
    assert "as with a norm after the output" in warning
    assert report.recommendation.relative_sensitivity != pytest.approx(tau, rel=0.1)
    # κ is kept all the same: δt = κ / τ with the τ that was reached
    advice = report.recommendation
    assert advice.feature_step == pytest.approx(FEATURE_STEPS["sgd"])
    assert advice.master_lr == pytest.approx(advice.feature_step / advice.relative_sensitivity)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": ["tokens", "layers.0", "layers.1", "head"]}, "'position' is in no block"),
        ({"blocks": {**BLOCKS, "layers": []}}, "'layers.0.norm.weight' is in blocks layers.0 and layers"),
        ({"blocks": ["nowhere", "head"]}, "no submodule 'nowhere'"),
        ({"blocks": BLOCKS, "optimizer": "lion"}, "'lion' is not one of sgd, adam, adamw, signsgd, muon"),
        ({"blocks": BLOCKS, "learning_rates": {"drop": 1.0}}, "no rate for block 'layers.0'"),
        ({"blocks": BLOCKS, "learning_rates": "optimizer"}, "needs a torch optimizer"),
    ],
)
def test_misuse_is_named(own, batches, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        measure(own, batches, **arguments)


def test_tied_weights_across_blocks_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"'1.weight' is tied to '0.weight'"):
        network_of(model)


def test_an_unsupported_optimizer_is_named(own, batches) -> None:
    with pytest.raises(ValueError, match="Adagrad is not one of SGD, AdamW, Adam, Muon, SignSgd"):
        measure(own, batches, blocks=BLOCKS, optimizer=torch.optim.Adagrad(own.parameters()))


def _muon_and_adamw(own: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for p in own.layers.parameters() if p.ndim == 2]
    rest = [p for p in own.parameters() if all(p is not q for q in matrices)]
    return [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0)]


def test_two_optimizers_are_measured_where_they_are(own, batches) -> None:
    """Against one real step of both: contributions are −⟨∇_l, Δw_l⟩ over all of a block's parameters."""
    own.double().eval()
    optimizers = _muon_and_adamw(own)
    for inputs, targets in batches[1:3]:
        own.zero_grad()
        nn.functional.cross_entropy(own(inputs), targets).backward()
        for optimizer in optimizers:
            optimizer.step()
    report = measure(own, batches, blocks=BLOCKS, optimizer=optimizers, learning_rates="optimizer")
    own.zero_grad()
    nn.functional.cross_entropy(own(batches[0][0]), batches[0][1]).backward()
    before = {n: p.detach().clone() for n, p in own.named_parameters()}
    for optimizer in optimizers:
        optimizer.step()
    decay = {n: -float((p.grad * (p.detach() - before[n])).sum()) for n, p in own.named_parameters()}
    layers = report.measurements[0].layers
    for layer, prefixes in zip(
        layers, [("tokens", "position"), ("layers.0",), ("layers.1",), ("final", "head")], strict=True
    ):
        mine = sum(value for name, value in decay.items() if name.startswith(prefixes))
        assert layer.contribution.mean == pytest.approx(mine, rel=1e-9)


def test_a_recommendation_for_muon_names_the_optimizer_of_each_parameter(own, batches) -> None:
    """By name, and from the user's own optimizers: the same parameters, the same rates."""
    by_name, by_own = (
        recommend(own, batches, blocks=BLOCKS, branches=BRANCHES, optimizer=optimizer).recommendation
        for optimizer in ("muon", _muon_and_adamw(own))
    )
    assert by_name == by_own
    matrices = {n for n, p in own.named_parameters() if n.startswith("layers") and p.ndim == 2}
    assert {p.name for p in by_name.parameters if p.optimizer == "muon"} == matrices
    assert {p.optimizer for p in by_name.parameters} == {"muon", "adamw"}


@pytest.mark.parametrize("twice", [True, False])
def test_a_parameter_in_two_optimizers_or_in_none_is_named(own, batches, twice: bool) -> None:
    first, second = _muon_and_adamw(own)
    optimizers = [first, first, second] if twice else [first]
    with pytest.raises(ValueError, match="is in two groups" if twice else "is in none of its groups"):
        measure(own, batches, blocks=BLOCKS, optimizer=optimizers)


def two_blocks(first: nn.Module, second: nn.Module | None = None) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    return nn.Sequential(first, second or nn.Linear(4, 3)), [(torch.ones(2, 4), torch.tensor([0, 1]))]


def test_features_that_are_not_finite_name_the_first_layer() -> None:
    broken = nn.Linear(4, 4)
    nn.init.constant_(broken.weight, 1e38)
    model, data = two_blocks(broken)
    with pytest.raises(MeasurementError, match="features of block '0' are not finite"):
        measure(model, data)


def test_a_zero_gradient_names_its_block() -> None:
    head = nn.Linear(4, 3)
    nn.init.zeros_(head.weight)
    model, data = two_blocks(nn.Linear(4, 4), head)
    with pytest.raises(MeasurementError, match="gradient of block '0' is zero"):
        measure(model, data)
    report = measure(model, data, learning_rates=0.1)  # explicit rates: the rest is still meaningful
    assert "gradient of block '0' is zero" in report.warnings[0]


def test_a_feature_changed_in_place_is_named() -> None:
    model, data = two_blocks(nn.Linear(4, 4), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)))
    with pytest.raises(MeasurementError, match="output of block '0' is changed in place"):
        measure(model, data, blocks=["0", "1"])


def test_a_zero_head_is_scaled_as_if_drawn_and_probed_so() -> None:
    """Many models start their head at zero: hidden blocks then have no gradient, and the head no scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Sequential(nn.ReLU(), nn.Linear(32, 32)), nn.Linear(32, 4, bias=False))
    nn.init.zeros_(model[2].weight)
    batches = [(x, x[:, :4].argmax(1)) for x in torch.randn(12, 64, 8)]
    report = recommend(model, batches, optimizer="sgd", refine=8)
    assert not model[2].weight.any()
    assert any("'2' is zero" in warning for warning in report.warnings)
    assert report.recommendation.relative_sensitivity == pytest.approx(RELATIVE_SENSITIVITY, rel=0.03)
    gentle = report.recommendation.refinement.probes[0]
    assert gentle.mean_log_loss[0] != pytest.approx(math.log(math.log(4)), abs=1e-3)  # what a zero head would give
    report.apply(model)  # draws the head
    assert model[2].weight.square().mean().sqrt().item() == pytest.approx(
        report.recommendation.blocks[2].init_std,
        rel=0.2,  # 128 draws
    )
    after = measure(model, batches, optimizer="sgd").measurements[0]
    assert all(layer.gradient_norm.mean > 0 for layer in after.layers)


LOSSES = {
    "shape (2,)": lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"),
    "got float": lambda outputs, y: 1.0,
    "got NoneType": lambda outputs, y: None,
    "got torch.int64": lambda outputs, y: outputs.argmax(1).sum(),
    "got torch.complex": lambda outputs, y: outputs.sum() * 1j,
    "no gradient leads from it": lambda outputs, y: outputs.detach().sum(),
}


@pytest.mark.parametrize("words", LOSSES)
def test_a_loss_that_has_no_gradient_is_told(words: str) -> None:
    model, data = two_blocks(nn.Linear(4, 4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"^loss: ") as caught:
        measure(model, data, loss=LOSSES[words])
    assert words in str(caught.value)


def test_arguments_of_the_wrong_kind_are_told() -> None:
    model, data = two_blocks(nn.Linear(4, 4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"^batches: each must be a pair of inputs and targets, got Tensor$"):
        measure(model, [data[0][0]])
    with pytest.raises(ValueError, match=r"^seeds: must be a sequence of whole numbers"):
        measure(model, data, seeds=3)
    with pytest.raises(ValueError, match=r"^optimizer: 3 is neither a name"):
        measure(model, data, optimizer=3)
    with pytest.raises(ValueError, match=r"^model: has no parameters"):
        measure(nn.Sequential(nn.ReLU(), nn.Tanh()), data, blocks=["0", "1"])


def test_the_default_of_a_module_are_its_own_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 4))
    nn.init.zeros_(model[2].bias)
    batches = [(x, x[:, :4].argmax(1)) for x in torch.randn(4, 64, 8)]
    before = {name: p.detach().square().mean().sqrt().item() for name, p in model.named_parameters()}
    report = recommend(model, batches, optimizer="sgd")
    report.apply(model)
    for advice in report.recommendation.parameters:
        after = model.get_parameter(advice.name).detach().square().mean().sqrt().item()
        if before[advice.name] == 0:
            assert advice.init_ratio is None
        else:
            assert advice.init_ratio == pytest.approx(after / before[advice.name], rel=1e-5)
    assert report.recommendation.blocks[-1].init_ratio != pytest.approx(1, rel=0.1)


class ByKeyword(nn.Module):
    """The same network, called as models of Hugging Face are: by keyword, with its loss beside the logits."""

    def __init__(self, own: Own) -> None:
        super().__init__()
        self.own = own

    def forward(self, *, tokens, labels=None, verbose=False):
        logits = self.own(tokens)
        return {"logits": logits, "loss": None if labels is None else nn.functional.cross_entropy(logits, labels)}


def test_keyword_arguments_and_a_loss_of_the_models_own_give_the_same(own, batches) -> None:
    model = ByKeyword(own)
    blocks = {f"own.{block}": [f"own.{name}" for name in more] for block, more in BLOCKS.items()}
    branches = {f"own.{block}": [f"own.{name}" for name in names] for block, names in BRANCHES.items()}
    given = [({"tokens": x, "labels": y, "verbose": False}, None) for x, y in batches]
    for call in (measure, recommend):
        more = {} if call is measure else {"branches": BRANCHES}
        plain = call(own, batches, blocks=BLOCKS, optimizer="sgd", stability=True, **more)
        more = {} if call is measure else {"branches": branches}
        other = call(model, given, loss=own_loss, blocks=blocks, optimizer="sgd", stability=True, **more)
        text = other.model_dump_json(exclude={"provenance": {"wall_seconds"}}).replace("own.", "")
        assert text == plain.model_dump_json(exclude={"provenance": {"wall_seconds"}})
        assert plain.stability is not None
