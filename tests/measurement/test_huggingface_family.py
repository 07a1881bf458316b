"""Measured and recommended for networks of transformers: against finite differences, and on models that users make."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurespeed.budget import stability_examples
from featurespeed.contract import JobRequest, Report, parse_request
from featurespeed.defaults import RELATIVE_SENSITIVITY
from featurespeed_workers import measure
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.data import load
from featurespeed_workers.local import answer
from featurespeed_workers.network import Network
from tests.architectures.huggingface_cases import CASES, spec
from tests.architectures.test_huggingface import made_by_transformers

pytest.importorskip("transformers")

DROPOUT: dict[str, dict[str, float]] = {
    "gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    "bert": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "vit": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "convnext": {"drop_path_rate": 0.3},
}


@pytest.mark.parametrize("name", CASES)
def test_the_formula_holds_exactly(name: str) -> None:
    report = answer(parse_request(spec(name, "recommend")))
    for found in report.measurements:
        assert found.formula_residual < 1e-9
        assert found.method == "exact"
    assert not report.warnings


@pytest.mark.parametrize("name", DROPOUT)
def test_the_formula_holds_where_something_is_dropped(name: str) -> None:
    """The same mask in both passes. With dropped weights, the attention of ViT takes its softmax in float32."""
    [found] = answer(parse_request(spec(name, config=DROPOUT[name]))).measurements
    assert found.formula_residual < (1e-7 if name == "vit" else 1e-9)
    assert found.method == "exact"


@pytest.mark.parametrize(
    "activation",
    ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "silu", "swish", "mish", "tanh"],
)
def test_every_activation_has_a_forward_rule(activation: str) -> None:
    [found] = answer(parse_request(spec("gpt2", config={"activation_function": activation}))).measurements
    assert found.method == "exact"
    assert found.formula_residual < 1e-9


def features_of(model: nn.Module, paths: list[str], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Outputs of the modules, and the logits."""
    seen: list[Tensor] = []
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda m, a, out: seen.append((out[0] if isinstance(out, tuple) else out).clone())
        )
        for path in paths
    ]
    logits = model(x)[0]
    for hook in hooks:
        hook.remove()
    return seen, logits


def loss_of(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


@pytest.mark.parametrize("name", CASES)
def test_velocities_and_angles_are_those_of_finite_differences(name: str) -> None:
    """By torch alone: w ∓ h η ∇L, and the outputs of the model's own modules there."""
    request = parse_request(spec(name, optimizer={"name": "sgd"}, learning_rates=0.1))
    [found] = answer(request).measurements
    model = build(request.architecture, seed=0).module.double()
    paths = [block.module for block in build(request.architecture, seed=0).blocks]
    source = load(request, dataset=None, dtype=torch.float64, device=torch.device("cpu"))
    x, y = source.batch(0, 0)
    features, logits = features_of(model, paths, x)
    leaves = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss_of(logits, y), leaves, allow_unused=True)
    h = 1e-6
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, g in zip(leaves, gradients, strict=True):
                if g is not None:
                    p.sub_(g, alpha=0.1 * sign * h)
            sides.append((features_of(model, paths, x)[0], float(loss_of(model(x)[0], y))))
            for p, g in zip(leaves, gradients, strict=True):
                if g is not None:
                    p.add_(g, alpha=0.1 * sign * h)
    for layer, f, plus, minus in zip(found.layers, features, sides[0][0], sides[1][0], strict=True):
        speed = ((plus - minus) / (2 * h)).square().mean().sqrt()
        assert layer.feature_rms.mean == pytest.approx(float(f.detach().square().mean().sqrt()), rel=1e-9)
        assert layer.feature_speed.mean == pytest.approx(float(speed), rel=1e-5), layer.name
    decay = -(sides[0][1] - sides[1][1]) / (2 * h)
    assert sum(layer.contribution.mean for layer in found.layers) == pytest.approx(decay, rel=1e-5)


def scaled_rms(model: nn.Module, network: Network, x: Tensor) -> dict[str, tuple[float, float]]:
    """Of every module that SP scales (the output's left out): rms of its output, and its target."""
    scalables = [s for block in network.blocks[:-1] for s in block.scalables]
    with torch.no_grad():
        outputs, _ = features_of(model, [s.module for s in scalables], x)
    return {s.module: (float(f.square().mean().sqrt()), s.target_rms) for s, f in zip(scalables, outputs, strict=True)}


def promised(model: nn.Module, network: Network, report: Report, batches: list[Any]) -> tuple[float, list[float]]:
    """τ, and contributions as ratios to those that were asked for: means over batches, as for a module of one's own."""
    advice = report.recommendation
    assert advice is not None
    owned = {b.module: [n for n in b.parameters if not n.startswith(f"{b.module}.")] for b in network.blocks}
    found = measure(
        model,
        lambda seed: [batches[seed]],
        optimizer="adamw",
        learning_rates={str(b.module): b.lr / advice.master_lr for b in advice.blocks},
        blocks=owned,
        seeds=range(len(batches)),
        stability=False,
    ).measurements[0]
    last, decays = found.layers[-2], zip(*(layer.contribution.values for layer in found.layers), strict=True)
    values = zip(last.feature_speed.values, last.feature_rms.values, decays, strict=True)
    tau = statistics.fmean(speed / rms / sum(decay) for speed, rms, decay in values)
    weights = {"input": 1.0, "output": 1.0}
    each = [weights.get(b.name, 1 / math.sqrt(len(advice.blocks) - 2)) for b in advice.blocks]
    return tau, [x.contribution.mean * sum(each) / weight for x, weight in zip(found.layers, each, strict=True)]


def batches_of(request: JobRequest, seed: int, dtype: torch.dtype) -> list[Any]:
    source = load(request, dataset=None, dtype=dtype, device=torch.device("cpu"))
    return [source.batch(seed, step) for step in range(4)]


@pytest.mark.parametrize("name", CASES)
def test_a_users_model_gets_the_promised_properties(name: str) -> None:
    """``report.apply`` on ``AutoModel….from_config`` with the same draws; then measured as a module of one's own."""
    request = parse_request(spec(name, "recommend"))
    report = answer(request)
    network = build(request.architecture, seed=0)
    base_initialize(network, seed=0)
    model = made_by_transformers(request.architecture, use_cache=False)
    model.load_state_dict(network.module.state_dict())
    model.train().double()
    report.apply(model)
    batches = batches_of(request, 0, torch.float64)
    for path, (rms, target) in scaled_rms(model, network, torch.cat([x for x, _ in batches])).items():
        assert rms == pytest.approx(target, rel=0.006), path
    tau, contributions = promised(model, network, report, batches)
    assert tau == pytest.approx(RELATIVE_SENSITIVITY, rel=0.025)
    assert contributions == pytest.approx([1.0] * len(contributions), rel=1e-5)
    groups = report.param_groups(model)
    assert [group["name"] for group in groups] == request.architecture.block_names
    assert sum(p.numel() for group in groups for p in group["params"]) == request.architecture.parameter_count


@pytest.mark.parametrize(
    ("name", "wider"),
    [("gpt2", {"n_embd": 96}), ("llama", {"hidden_size": 96}), ("convnext", {"hidden_sizes": [32, 64]})],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_other_draws_and_batches_come_near_the_promise(name: str, wider: dict[str, Any]) -> None:
    """A model that has drawn its own weights: as near as small networks are to each other."""
    request = parse_request(spec(name, "recommend", config=wider, measurement={"seeds": [0, 1, 2]}))
    report = answer(request)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = made_by_transformers(request.architecture, use_cache=False).train()
    report.apply(model)
    network, batches = build(request.architecture, seed=0), batches_of(request, 9, torch.float32)
    for path, (rms, target) in scaled_rms(model, network, torch.cat([x for x, _ in batches])).items():
        assert rms == pytest.approx(target, rel=0.25), path
    tau, contributions = promised(model, network, report, batches)
    assert tau == pytest.approx(RELATIVE_SENSITIVITY, rel=0.25)
    assert contributions == pytest.approx([1.0] * len(contributions), rel=0.4)


@pytest.mark.parametrize("name", CASES)
def test_scales_are_told_as_ratios_to_the_initialization_of_transformers(name: str) -> None:
    request = parse_request(spec(name, "recommend"))
    advice = answer(request).recommendation
    assert advice is not None
    default = dict(build(request.architecture, seed=0).module.named_parameters())

    def size(p: Tensor) -> float:
        return float(p.detach().double().square().sum())

    for tensor in advice.parameters:
        usual = math.sqrt(size(default[tensor.name]) / default[tensor.name].numel())
        if usual == 0:
            assert tensor.init_ratio is None
        else:
            assert tensor.init_ratio == pytest.approx(math.hypot(tensor.init_mean, tensor.init_std) / usual, rel=1e-5)
    for block in advice.blocks:
        own = [t for t in advice.parameters if t.block == block.name and len(t.shape) > 1]
        numbers = sum(math.prod(t.shape) for t in own)
        usual = math.sqrt(sum(size(default[t.name]) for t in own) / numbers)
        assert block.init_std == pytest.approx(
            math.sqrt(sum(t.init_std**2 * math.prod(t.shape) for t in own) / numbers), rel=1e-6
        )
        assert block.init_ratio == pytest.approx(block.init_std / usual, rel=1e-5)


def test_layer_scale_and_the_gain_of_the_last_norm_are_what_a_branch_is_scaled_by() -> None:
    for name, suffix, near in (
        ("convnext", ".layer_scale_parameter", 1 / math.sqrt(4)),
        ("resnet", ".layer.2.normalization.weight", 1 / math.sqrt(4)),
    ):
        request = parse_request(spec(name, "recommend", measurement={"dtype": "float64", "seeds": [0, 1]}))
        found = answer(request).recommendation
        assert found is not None
        gains = [p for p in found.parameters if p.name.endswith(suffix)]
        assert len(gains) == 4
        for gain in gains:
            assert gain.init_std == 0
            assert near / 2 < gain.init_mean < near * 2
            assert gain.init_mean not in (0.0, 1.0)


def test_gains_are_shared_under_granularity_group() -> None:
    request = parse_request(spec("resnet basic", "recommend", scaling={"granularity": "group"}))
    found = answer(request).recommendation
    assert found is not None
    gains = {
        (p.shape, p.name.split(".layers.")[1]): p.init_mean
        for p in found.parameters
        if p.name.endswith(".layer.1.normalization.weight")
    }
    assert len(gains) == 4
    assert len({b.lr for b in found.blocks[1:-1]}) == 1


def test_muon_has_the_matrices_and_adamw_what_else_there_is() -> None:
    for name, matrices in (("gpt2", 8), ("convnext", 8)):
        found = answer(parse_request(spec(name, "recommend", optimizer={"name": "muon"}))).recommendation
        assert found is not None
        muon = [p for p in found.parameters if p.optimizer == "muon"]
        assert len(muon) == matrices
        assert all(len(p.shape) == 2 for p in muon)
        assert {p.optimizer for p in found.parameters} == {"muon", "adamw"}


@pytest.mark.parametrize("name", ["gpt2", "convnext"])
def test_dropout_is_decided_by_the_seed(name: str) -> None:
    """Whatever the global random state, which is left as it was; measured, trained and probed."""
    given = spec(
        name,
        "recommend",
        config=DROPOUT[name],
        measurement={"seeds": [0], "steps": 3},
        scaling={"refine": {"steps": 5, "seeds": 1}},
        optimizer={"name": "sgd"},
    )
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        found.append(answer(parse_request(given)).model_dump(exclude={"provenance"}))
        assert torch.equal(before, torch.get_rng_state())
    assert found[0] == found[1]


def test_second_derivatives_with_dropout_are_of_the_whole_batch() -> None:
    config = {"n_embd": 384, "n_layer": 6, "n_head": 12, "n_positions": 512}
    document = spec("gpt2", config=config, measurement={"seeds": [0], "stability": True})
    document["architecture"]["context_length"], document["data"]["batch_size"] = 512, 64
    assert 0 < stability_examples(parse_request(document)) < 64
    document["architecture"]["config"]["resid_pdrop"] = 0.1
    assert stability_examples(parse_request(document)) == 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit", "resnet"])
def test_an_output_may_start_at_zero(name: str) -> None:
    """τ after the first step, which the search measures there, is what was asked for; with dropout too."""
    request = parse_request(spec(name, "recommend", config=DROPOUT.get(name, {}), scaling={"zero_output": True}))
    advice = answer(request).recommendation
    assert advice is not None
    assert advice.relative_sensitivity == pytest.approx(0.35, rel=0.03)
    output = advice.blocks[-1]
    assert output.first_lr is not None
    assert output.init_std == 0
