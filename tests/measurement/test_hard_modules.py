"""Modules that make measuring hard: in-place operations, checkpointing, order, masks, autocast, vanishing gradients."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from featurespeed.contract import parse_request
from featurespeed.defaults import RELATIVE_SENSITIVITY
from featurespeed_workers import MeasurementError, measure, recommend
from featurespeed_workers.local import answer
from featurespeed_workers.losses import cross_entropy
from featurespeed_workers.passes import inner, norm


class Lambda(nn.Module):
    def __init__(self, function, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def chain(*blocks: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *blocks, nn.Linear(8, 3)).double()


def data(count: int = 4, size: int = 10) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 6, generator=generator).double(), torch.randint(0, 3, (size,), generator=generator))
        for _ in range(count)
    ]


def fresh(*shape: int) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(*shape)


def added_in_place(block, x):
    h = block.a(torch.relu(x))
    h += x
    return h


def in_checkpoint(block, x):
    return checkpoint(lambda y: block.b(torch.relu(block.norm(block.a(y)))), x, use_reentrant=False)


def changes_its_input(block, x):
    x -= x.mean(0)
    return block.a(x)


HARD = {
    "in place after a linear map": lambda: chain(Lambda(added_in_place, a=fresh(8, 8))),
    "in-place activation and dropout": lambda: chain(
        nn.Sequential(nn.Linear(8, 8), nn.SiLU(inplace=True), nn.Dropout(0.3, inplace=True), nn.Linear(8, 8))
    ),
    "checkpointing": lambda: chain(
        Lambda(in_checkpoint, a=fresh(8, 8), b=fresh(8, 8), norm=nn.BatchNorm1d(8))
    ),
    "convolution": lambda: chain(Lambda(lambda m, x: m.c(x[:, None]).mean(1), c=nn.Conv1d(1, 3, 3, padding=1))),
}  # fmt: skip


@pytest.mark.parametrize("case", HARD)
def test_both_sides_agree_and_nothing_changes(case: str) -> None:
    model, batches = HARD[case](), data()
    before, given = copy.deepcopy(model.state_dict()), copy.deepcopy(batches)
    for report in (measure(model, batches), recommend(model, batches, optimizer="sgd", relative_sensitivity=0.5)):
        assert report.measurements[0].method == "exact"
        assert report.measurements[0].formula_residual < 1e-10
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    for (x, y), (x0, y0) in zip(batches, given, strict=True):
        assert torch.equal(x, x0)
        assert not x.requires_grad
        assert torch.equal(y, y0)


def test_a_module_that_changes_its_input_in_place_sees_a_copy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Lambda(changes_its_input, a=nn.Linear(6, 8)), nn.Linear(8, 3)).double()
    batches = data(1)
    before = batches[0][0].clone()
    assert measure(model, batches).measurements[0].formula_residual < 1e-10
    assert torch.equal(batches[0][0], before)


def test_blocks_that_run_in_another_order_are_refused() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(8, 3), nn.Linear(6, 8)

        def forward(self, x):
            return self.second(self.first(x))

    model = Backwards().double()
    for ask in (measure, recommend):
        with pytest.raises(MeasurementError, match=r"in the order given; what ran was: first, second"):
            ask(model, data(), blocks=["second", "first"])
    assert measure(model, data(), blocks=["first", "second"]).measurements[0].formula_residual < 1e-10


def test_a_block_that_is_not_called_is_named() -> None:
    model = chain(Lambda(lambda m, x: x + m.attention(x[:, None], x[:, None], x[:, None])[0][:, 0],
                         attention=nn.MultiheadAttention(8, 2, batch_first=True)))  # fmt: skip
    with pytest.raises(MeasurementError, match=r"'1.attention.out_proj' of block '1' is not called"):
        recommend(model, data(), branches={"1": ["1.attention.out_proj"]})


def test_an_attention_row_that_sees_nothing() -> None:
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[2:, :5] = True

    def attend(block, x):
        q, k, v = block.qkv(x).chunk(3, -1)
        out = nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
        return x + block.out(out)

    model = chain(Lambda(attend, qkv=fresh(8, 24), out=fresh(8, 8)))
    assert measure(model, data()).measurements[0].formula_residual < 1e-10


def test_autocast_is_measured_to_its_precision() -> None:
    model = chain(nn.Sequential(nn.ReLU(), nn.Linear(8, 8))).float()
    batches = [(x.float(), y) for x, y in data()]

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs.float(), targets)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = measure(model, batches, loss=loss)
    assert report.measurements[0].formula_residual < 5e-2


def test_frozen_matrices_are_not_rescaled() -> None:
    model = chain(nn.Sequential(nn.ReLU(), nn.Linear(8, 8)))
    model[0].requires_grad_(False)
    report = recommend(model, data(), optimizer="sgd")
    before = model[0].weight.clone()
    report.apply(model)
    assert torch.allclose(model[0].weight, before, rtol=1e-12)


def test_what_cannot_be_scaled_is_left_and_said() -> None:
    residual = Lambda(lambda m, x: x + m.b(torch.relu(m.a(x))), a=fresh(8, 8), b=fresh(8, 8))
    saturated = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    for block in (residual, saturated):
        model = chain(block)
        report = recommend(model, data(), optimizer="sgd")
        assert any("block '1': no scale brings" in w for w in report.warnings)
        assert "left as it was" in report.recommendation.blocks[1].note
        stds = {p.name: p.init_std for p in report.recommendation.parameters}
        for name, p in model.named_parameters():
            if name.startswith("1.") and p.ndim > 1:
                assert stds[name] == pytest.approx(float(p.detach().square().mean().sqrt()), rel=1e-12)


@pytest.mark.parametrize("depth", [40, 70])
def test_vanishing_gradients_are_numbers_not_errors(depth: int) -> None:
    """PyTorch's default initialization of a deep ReLU MLP: float32 agrees with float64 far below 1e-20."""
    spec = {
        "kind": "measure", "loss": "mse", "optimizer": {"name": "sgd"},
        "architecture": {"family": "mlp", "input_dim": 16, "width": 64, "depth": depth, "output_dim": 4, "bias": True},
        "data": {"kind": "gaussian", "batch_size": 16},
    }  # fmt: skip
    reports = [
        answer(parse_request({**spec, "measurement": {"seeds": [0], "dtype": dtype}, "learning_rates": rates}))
        for rates in ("balanced", 0.1)
        for dtype in ("float32", "float64")
    ]
    for single, double in (reports[:2], reports[2:]):
        assert double.measurements[0].layers[0].gradient_norm.mean < 1e-10
        for a, b in zip(single.measurements[0].layers, double.measurements[0].layers, strict=True):
            assert a.gradient_norm.mean == pytest.approx(b.gradient_norm.mean, rel=1e-3)
            assert a.angle.mean == pytest.approx(b.angle.mean, abs=1e-3)


def test_sums_over_many_numbers_are_exact_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30_000_001, generator=generator) + 1 for _ in range(2))
    assert norm(x) == pytest.approx(float(x.double().norm()), rel=2e-6)
    assert inner(x, y) == pytest.approx(float(x.double() @ y.double()), rel=2e-6)
    assert norm(x * 1e-25) == pytest.approx(float((x * 1e-25).double().norm()), rel=1e-6)


def test_a_data_loader_leaves_the_random_state() -> None:
    x, y = data(1, 40)[0]
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True)
    model = chain()
    before = torch.get_rng_state()
    recommend(model, loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_weight_decay_that_outweighs_small_gradients_only_moves_the_start_of_the_search() -> None:
    spec = {
        "kind": "recommend", "loss": "cross_entropy", "optimizer": {"name": "sgd", "weight_decay": 0.1},
        "architecture": {"family": "mlp", "input_dim": 64, "width": 32, "depth": 4, "output_dim": 10},
        "data": {"kind": "digits"}, "measurement": {"seeds": [0]},
    }  # fmt: skip
    report = answer(parse_request(spec))
    assert report.warnings == ()
    assert report.recommendation.relative_sensitivity == pytest.approx(RELATIVE_SENSITIVITY, rel=0.02)


def test_decoupled_weight_decay_and_subclasses() -> None:
    model, batches = chain(), data()
    coupled = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    decoupled = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.5, decoupled_weight_decay=True)
    found = [measure(model, batches, optimizer=o, learning_rates="optimizer") for o in (coupled, decoupled)]
    assert found[0].measurements == found[1].measurements

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            raise AssertionError

    with pytest.raises(ValueError, match="Own is not one of"):
        measure(model, batches, optimizer=Own(model.parameters(), lr=0.1))


MISUSE = {
    "learning_rates": ({"learning_rates": "balancd"}, "'balancd' is neither"),
    "unknown block": ({"learning_rates": {"0": 1.0, "1": 1.0, "2": 1.0}}, "unknown block '2'"),
    "method": (
        {"method": "finite"},
        "'finite' is not one of exact, double_backward, central_difference, fin",
    ),
    "loss": ({"loss": "mae"}, "'mae' is not one of mse, cross_entropy"),
    "seeds": ({"seeds": ()}, "seeds: at least one"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misspelt_arguments(case: str) -> None:
    arguments, message = MISUSE[case]
    with pytest.raises(ValueError, match=message):
        measure(chain(), data(), **arguments)


def test_constants_must_be_positive_and_shapes_agree() -> None:
    with pytest.raises(ValueError, match="relative_sensitivity: must be positive, got 0"):
        recommend(chain(), data(), relative_sensitivity=0)
    with pytest.raises(ValueError, match=r"logits have shape \(2, 3, 3, 3\), labels \(3, 2, 3\)"):
        cross_entropy(torch.zeros(2, 3, 3, 3), torch.zeros(2, 3, 3, dtype=torch.long).transpose(0, 1))
    batches = [(torch.zeros(2, 6).double(), torch.tensor([0, 1])), (torch.zeros(2, 7).double(), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match="inputs must have one shape"):
        recommend(chain(), batches)


def test_one_number_is_no_constant() -> None:
    spec = {
        "kind": "recommend", "loss": "mse", "optimizer": {"name": "sgd"},
        "architecture": {"family": "mlp", "input_dim": 4, "width": 1, "depth": 3, "output_dim": 1,
                         "activation": "tanh"},
        "data": {"kind": "gaussian", "batch_size": 8}, "measurement": {"seeds": [0, 1]},
    }  # fmt: skip
    assert all(block.init_std > 0 for block in answer(parse_request(spec)).recommendation.blocks)


@pytest.mark.parametrize("nth", range(1, 9))
def test_everything_is_restored_when_a_pass_fails(nth: int) -> None:
    """An exception in any of the forward passes of a recommendation leaves no trace."""
    calls = -1  # the first is our own

    def fails(block, x):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise RuntimeError("out of luck")
        return block.a(nn.functional.dropout(x, 0.1))

    model = chain(Lambda(fails, a=fresh(8, 8)))

    def outputs() -> Tensor:
        """What the module computes, called as its owner calls it, under a given draw of the dropout."""
        with torch.random.fork_rng([]):
            torch.manual_seed(3)
            return model(data()[0][0]).detach()

    before, tensors = outputs(), list(model.parameters())
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    reentrant = torch.utils.checkpoint.CheckpointFunction
    fast_path, python_random = torch.backends.mha.get_fastpath_enabled(), random.getstate()
    with pytest.raises(RuntimeError, match="out of luck"):
        recommend(model, data(), blocks=["0", "1", "2"])  # of failures while blocks are found: test_cut_nodes.py
    assert all(torch.equal(x, state[n]) for n, x in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert random.getstate() == python_random
    assert torch.utils.checkpoint.CheckpointFunction is reentrant
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert calls == nth  # the failing pass was the last one
    assert all(now is then for now, then in zip(model.parameters(), tensors, strict=True))
    assert torch.equal(outputs(), before)


class _Weighted(torch.autograd.Function):
    """Σ w c, whose gradient is the user's own tensor c."""

    @staticmethod
    def forward(ctx, w, c):
        ctx.c = c
        return (w * c).sum()

    @staticmethod
    def backward(ctx, g):
        assert g.shape == ()
        return ctx.c, None


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_a_gradient_that_is_a_tensor_of_the_users_is_not_written_to(optimizer: str, method: str) -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.c = nn.Parameter(torch.ones(8)), torch.arange(8.0).double()

        def forward(self, x):
            return x.square().mean() + _Weighted.apply(self.w, self.c)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Loss()).double()
    asked = {"blocks": ["0", "1"], "optimizer": optimizer, "method": method, "loss": lambda output, _: output}
    reports = [measure(model, [(torch.ones(4, 6).double(), None)], **asked) for _ in range(2)]
    assert model[1].c.equal(torch.arange(8.0).double())
    assert reports[0].measurements == reports[1].measurements
    assert reports[0].measurements[0].formula_residual < 1e-6
