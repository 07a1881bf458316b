"""What stands in for forward mode where an operator has no rule for it: against the same network made of others."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from featurespeed.contract import parse_request
from featurespeed_workers import FeatureSpeedMonitor, MeasurementError, measure, network_of, recommend
from featurespeed_workers.local import answer
from tests.measurement.identity import same
from tests.measurement.operators import OnceDifferentiable


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0].tanh() ** 2)


@torch.library.custom_op("featurespeed_tests::tanh", mutates_args=())
def library_tanh(x: Tensor) -> Tensor:
    return x.tanh()


library_tanh.register_fake(torch.empty_like)
library_tanh.register_autograd(
    lambda ctx, g: g * (1 - ctx.x.tanh() ** 2), setup_context=lambda ctx, inputs, output: setattr(ctx, "x", inputs[0])
)


class Custom(nn.Linear):
    def forward(self, x):
        return _Tanh.apply(super().forward(x))


class Library(nn.Linear):
    def forward(self, x):
        return library_tanh(super().forward(x))


class BuiltIn(nn.Linear):
    def forward(self, x):
        return super().forward(x).tanh()


class Distances(nn.Linear):
    def forward(self, x):
        return torch.cdist(super().forward(x), self.weight)


class DistancesByHand(nn.Linear):
    def forward(self, x):
        return (super().forward(x)[:, None] - self.weight).square().sum(-1).sqrt()


class Bilinear(nn.Linear):
    """Interpolates between the 8 numbers that the linear map gives."""

    points = torch.linspace(-0.8, 0.8, 8)

    def forward(self, x):
        points = torch.stack([self.points, torch.zeros(8)], -1).to(x).expand(len(x), 1, 8, 2)
        rows = super().forward(x)[:, None, None].expand(-1, -1, 2, -1)
        return nn.functional.grid_sample(rows, points, align_corners=True)[:, 0, 0]


class BilinearByHand(nn.Linear):
    def forward(self, x):
        at = (Bilinear.points.to(x) + 1) / 2 * 7
        low = at.floor().long().clamp(max=6)
        y, part = super().forward(x), at - low
        return y[:, low] * (1 - part) + y[:, low + 1] * part


OPERATORS = {
    "custom function": (Custom, BuiltIn, "double_backward", "custom function '_Tanh' has no forward-mode rule: "),
    "of torch": (Bilinear, BilinearByHand, "double_backward", "operator 'grid_sampler_2d' has no forward-mode rule: "),
    "of torch.library": (Library, BuiltIn, "double_backward", "gives its forward-mode derivative wrong, or none: "),
    "differentiable once": (OnceDifferentiable, BuiltIn, "central_difference", "'_Tanh' has no forward-mode rule and "),
    "of torch, once": (
        Distances,
        DistancesByHand,
        "central_difference",
        "'_cdist_forward' has no forward-mode rule and operator '_cdist_backward' cannot be differentiated twice: ",
    ),
}


def chain(kind: type[nn.Linear], *, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.Sequential(nn.Dropout(dropout), kind(8, 8))
    return nn.Sequential(nn.Linear(6, 8), middle, nn.Sequential(nn.GELU(), nn.Linear(8, 8)), nn.Linear(8, 3)).double()


BLOCKS = ["0", "1", "2", "3"]
FINITE = {"central_difference", "finite_difference"}


def data(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(10, 6, generator=generator).double(), torch.randint(0, 3, (10,), generator=generator))
        for _ in range(count)
    ]


def cosines(report) -> list[float]:
    return [layer.cos.mean for layer in report.measurements[0].layers]


@pytest.mark.parametrize("case", OPERATORS)
def test_the_method_and_its_error_are_named(case: str) -> None:
    kind, twin, method, words = OPERATORS[case]
    model, batches = chain(kind), data()
    before = [p.clone() for p in model.parameters()], torch.get_rng_state()
    report, truth = measure(model, batches, blocks=BLOCKS), measure(chain(twin), batches, blocks=BLOCKS)
    assert same([[p.clone() for p in model.parameters()], torch.get_rng_state()], list(before))
    [found], [exact] = report.measurements, truth.measurements
    assert (found.method, exact.method) == (method, "exact")
    [warning] = report.warnings
    assert words in warning
    assert f"measured by {method.replace('_', ' ')}, which adds " in warning
    error = max(abs(a - b) for a, b in zip(cosines(report), cosines(truth), strict=True))
    if method == "double_backward":
        assert found.cos_error is None
        assert "no error but rounding" in warning
        assert found.formula_residual < 1e-12
        for a, b in zip(found.layers, exact.layers, strict=True):
            assert a.feature_speed.mean == pytest.approx(b.feature_speed.mean, rel=1e-11)
            assert a.angle.mean == pytest.approx(b.angle.mean, abs=1e-11)
    else:
        assert error / 3 < found.cos_error < 1e-8
        assert f"about {found.cos_error:.0e} to cos θ" in warning


def test_a_recurrent_layer() -> None:
    """In float32 torch has a fused kernel for it, without forward mode; in float64 it has none."""

    class Recurrent(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Recurrent(8, 16, batch_first=True), nn.Linear(16, 3))
    x, y = torch.randn(4, 5, 6), torch.randint(0, 3, (4, 5))
    fused = measure(model, [(x, y)], blocks=["0", "1", "2"])
    exact = measure(model.double(), [(x.double(), y)], blocks=["0", "1", "2"])
    assert exact.measurements[0].method == "exact"
    assert cosines(fused) == pytest.approx(cosines(exact), abs=1e-6)
    if fused.measurements[0].method != "exact":  # on CPUs with that kernel
        assert fused.measurements[0].method == "double_backward"
        assert "'mkldnn_rnn_layer' has no forward-mode rule" in fused.warnings[0]


def test_it_is_found_once_for_a_network() -> None:
    calls = 0

    class Counted(OnceDifferentiable):
        def forward(self, x):
            nonlocal calls
            calls += 1
            return super().forward(x)

    network, counts = network_of(chain(Counted), BLOCKS), []
    for _ in range(3):
        calls = 0
        report = measure(network, data())
        counts.append(calls)
        assert report.measurements[0].method == "central_difference"
        assert len(report.warnings) == 1
    # forward mode and double backward, each after a pass for the gradient; then the five of central differences
    assert counts == [2 + 2 + 5, 5, 5]


def test_it_is_found_anew_where_another_operator_comes_up() -> None:
    """One that loses the tangent without a word; the network was measured by forward mode before."""

    class Changing(Library):
        early = True

        def forward(self, x):
            return nn.Linear.forward(self, x).tanh() if self.early else super().forward(x)

    model = chain(Changing)
    network = network_of(model, BLOCKS)
    before = measure(network, data())
    model[1][1].early = False
    after = measure(network, data())
    assert [r.measurements[0].method for r in (before, after)] == ["exact", "double_backward"]
    assert cosines(after) == pytest.approx(cosines(before), abs=1e-12)
    assert "gives its forward-mode derivative wrong, or none" in after.warnings[0]


class _MeanErrorTanh(_Tanh):
    pass


class NamedError(nn.Linear):
    """What torch puts where a function is differentiable once is named so, too."""

    def forward(self, x):
        return _MeanErrorTanh.apply(super().forward(x))


class Slope(nn.Linear):
    """Takes a gradient in its forward pass, as energy models of molecules do."""

    def forward(self, x):
        return torch.autograd.grad(super().forward(x).tanh().sum(), x, create_graph=True)[0]


class SlopeByHand(nn.Linear):
    def forward(self, x):
        return (1 - super().forward(x).tanh() ** 2) @ self.weight


class OnlyWithGraph(nn.Linear):
    """Another module where no gradient is asked for."""

    def forward(self, x):
        y = super().forward(x)
        return (nn.functional.linear(y, self.weight) if torch.is_grad_enabled() else y).tanh()


class TwiceByHand(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(super().forward(x), self.weight).tanh()


class _NoSlopeAtZero(_Tanh):
    @staticmethod
    def backward(ctx, g):
        size = g.norm()
        return g / size * size * (1 - ctx.saved_tensors[0].tanh() ** 2)


class NoSlopeAtZero(nn.Linear):
    def forward(self, x):
        return _NoSlopeAtZero.apply(super().forward(x))


@pytest.mark.parametrize(
    ("kind", "twin", "method", "words"),
    [
        (NamedError, BuiltIn, "double_backward", "custom function '_MeanErrorTanh' has no forward-mode rule: "),
        (Slope, SlopeByHand, "double_backward", "cannot run in forward mode, without a graph (element 0 of tensors"),
        (
            OnlyWithGraph,
            TwiceByHand,
            "double_backward",
            "cannot run in forward mode, without a graph (a second pass on the ",
        ),
        (NoSlopeAtZero, BuiltIn, "central_difference", "the second derivative of a backward pass is not finite: "),
    ],
)
def test_what_forward_mode_or_double_backward_cannot_do(kind, twin, method: str, words: str) -> None:
    report, truth = measure(chain(kind), data(), blocks=BLOCKS), measure(chain(twin), data(), blocks=BLOCKS)
    assert (report.measurements[0].method, truth.measurements[0].method) == (method, "exact")
    assert words in report.warnings[0]
    assert cosines(report) == pytest.approx(cosines(truth), abs=1e-12 if method == "double_backward" else 1e-8)


class Spectral(nn.Module):
    """A convolution by its spectrum, as Fourier neural operators have it; ``pairs``: of real numbers."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        spectrum = torch.randn(1, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
        self.spectrum = nn.Parameter(torch.view_as_real(spectrum) if pairs else spectrum)

    def forward(self, x):
        spectrum = self.spectrum if self.spectrum.is_complex() else torch.view_as_complex(self.spectrum)
        return torch.fft.irfft(torch.fft.rfft(x) * spectrum, n=8)


def spectral(pairs: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8).double(), Spectral(pairs), nn.Linear(8, 3).double())


@pytest.mark.parametrize("method", ["exact", "double_backward", "central_difference"])
@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.1)])
def test_complex_parameters_are_pairs_of_real_ones(make, method: str) -> None:
    reports = []
    for pairs in (False, True):
        model = spectral(pairs)
        optimizer = make(model.parameters())
        for x, y in data():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        asked = {"optimizer": optimizer, "blocks": BLOCKS[:3], "method": method}
        reports.append((measure(model, data(), **asked, stability=True), recommend(model, data(), **asked)))
    for found, truth in zip(*reports, strict=True):
        assert found.measurements[0].method == method
        assert not found.warnings
        assert cosines(found) == pytest.approx(cosines(truth), abs=1e-12 if method != "central_difference" else 1e-7)
    rates, scales = (
        [[getattr(block, what) for block in report.recommendation.blocks] for _, report in reports]
        for what in ("lr", "init_std")
    )
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)
    scales[1][1] *= math.sqrt(2)  # the standard deviation of complex numbers, as torch has it, is over the plane
    assert scales[0] == pytest.approx(scales[1], rel=1e-6)
    model = spectral(False)
    reports[0][1].apply(model)
    assert model[1].spectrum.abs().square().mean().sqrt().item() == pytest.approx(scales[0][1])


def test_threads_wait_for_one_another() -> None:
    batches, wanted = data(), measure(chain(BuiltIn), data(), blocks=BLOCKS).measurements
    models = [chain(BuiltIn) for _ in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for report in pool.map(lambda model: measure(model, batches, blocks=BLOCKS), models):
            assert report.measurements == wanted


@pytest.mark.parametrize("kind", [Custom, OnceDifferentiable])
def test_dropout_is_the_same_in_every_pass(kind: type[nn.Linear]) -> None:
    [found] = measure(chain(kind, dropout=0.4), data(), blocks=BLOCKS).measurements
    assert found.formula_residual < (1e-12 if kind is Custom else 1e-8)
    assert found.method == ("double_backward" if kind is Custom else "central_difference")


def test_features_that_do_not_move() -> None:
    model = chain(Custom)
    model[:2].requires_grad_(False)
    for method in ("double_backward", "central_difference"):
        [found] = measure(model, data(), blocks=BLOCKS, method=method).measurements
        assert [layer.feature_speed.mean > 0 for layer in found.layers] == [False, False, True, True]
        assert found.formula_residual < 1e-8


def relu_mlp() -> nn.Sequential:
    widths = [6, *[32] * 6]
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*layers, nn.Linear(32, 3))


def gelu_mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 32), *[nn.Sequential(nn.GELU(), nn.Linear(32, 32)) for _ in range(5)],
                         nn.Sequential(nn.GELU(), nn.Linear(32, 3)))  # fmt: skip


def attention() -> nn.Sequential:
    layers = [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, norm_first=True, batch_first=True) for _ in range(2)]
    return nn.Sequential(nn.Linear(6, 16), *layers, nn.Linear(16, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("make", [relu_mlp, gelu_mlp, attention])
def test_the_error_that_is_told_is_the_error_that_is_made(make, optimizer: str, dtype: torch.dtype) -> None:
    """Where forward mode works too: the estimate is of the order of the true error, and hardly ever below it."""
    for seed in range(4):
        torch.manual_seed(seed)
        model = make().to(dtype)
        x, y = torch.randn(5, 4, 6).to(dtype), torch.randint(0, 3, (5, 4))
        asked = {"optimizer": optimizer, "blocks": [name for name, _ in model.named_children()]}
        exact = measure(model, [(x, y)], **asked)
        found = {m: measure(model, [(x, y)], **asked, method=m) for m in ("double_backward", *FINITE)}
        errors = {m: max(abs(a - b) for a, b in zip(cosines(r), cosines(exact), strict=True)) for m, r in found.items()}
        assert errors["double_backward"] < 10 * torch.finfo(dtype).eps
        for method in FINITE:
            told = found[method].measurements[0].cos_error
            assert errors[method] / 3 < told < max(300 * errors[method], 1e3 * torch.finfo(dtype).eps)
            assert not found[method].warnings  # it was asked for
        assert found["central_difference"].measurements[0].cos_error < (5e-3 if dtype == torch.float32 else 1e-4)


def test_what_was_asked_for_and_cannot_be_is_refused() -> None:
    words = "'_cdist_backward' cannot be differentiated twice; method central_difference needs no rule"
    with pytest.raises(MeasurementError, match=words) as caught:
        measure(chain(Distances), data(), blocks=BLOCKS, method="double_backward")
    assert caught.value.type == "not-differentiable"


def test_recommendations_and_monitors_name_it_too() -> None:
    report = recommend(chain(OnceDifferentiable), data(), optimizer="sgd", blocks=BLOCKS)
    twin = recommend(chain(BuiltIn), data(), optimizer="sgd", blocks=BLOCKS)
    assert report.measurements[0].method == "central_difference"
    assert sum("has no forward-mode rule" in w for w in report.warnings) == 1
    for a, b in zip(report.recommendation.blocks, twin.recommendation.blocks, strict=True):
        assert (a.init_std, a.lr) == pytest.approx((b.init_std, b.lr), rel=1e-6)
    records, model = [], chain(Distances)
    monitor = FeatureSpeedMonitor(
        model, torch.optim.SGD(model.parameters(), lr=0.1), to=records.append, every=1, blocks=BLOCKS
    )
    for x, y in data():
        monitor.step(x, y)
    assert [record.method for record in records] == ["central_difference"] * 4
    assert all(record.cos_error < 1e-7 and "'_cdist_forward'" in record.warnings[0] for record in records)


@pytest.mark.parametrize("method", ["double_backward", "central_difference"])
def test_a_request_may_ask_for_it(method: str) -> None:
    spec = {
        "kind": "measure", "loss": "mse", "optimizer": {"name": "sgd"}, "data": {"kind": "gaussian", "batch_size": 8},
        "architecture": {"family": "mlp", "input_dim": 4, "width": 16, "depth": 3, "output_dim": 2},
    }  # fmt: skip
    given = {"seeds": [0, 1], "dtype": "float64"}
    report = answer(parse_request({**spec, "measurement": {**given, "method": method}}))
    exact = answer(parse_request({**spec, "measurement": given}))
    assert report.measurements[0].method == method
    assert not report.warnings
    angles = ([layer.angle.mean for layer in r.measurements[0].layers] for r in (report, exact))
    for a, b in zip(*angles, strict=True):
        assert math.isclose(a, b, abs_tol=1e-4)


class _Wrong(torch.autograd.Function):
    """ReLU, whose backward pass is too large by a factor and which has no forward-mode rule."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x.relu()

    @staticmethod
    def backward(ctx, grad):
        [x] = ctx.saved_tensors
        return ctx.factor * grad * (x > 0), None


class Wrong(nn.Linear):
    factor = 1.0

    def forward(self, x):
        return _Wrong.apply(super().forward(x), self.factor)


@pytest.mark.parametrize("factor", [1.0, 1.5, -1.0])
def test_a_backward_pass_that_is_no_derivative_is_told(factor: float) -> None:
    """Double backward agrees with itself, whatever it computes; the features' own differences do not."""
    model, batches = chain(Wrong), data()
    model[1][1].factor = factor
    network = network_of(model, BLOCKS)
    measured = [measure(network, batches) for _ in range(2)]  # what is found holds for later measurements
    for report in measured:
        [found], [warning] = report.measurements, report.warnings
        assert found.method == "double_backward"
        assert found.formula_residual < 1e-10
        told = "a backward pass is not the derivative of its forward pass" in warning
        assert told == (factor != 1)
        assert (found.cos_error is not None) == told
    truth = measure(model, batches, blocks=BLOCKS, method="central_difference").measurements[0]
    if factor != 1:
        assert measured[0].measurements[0].cos_error == pytest.approx(truth.formula_residual, rel=1e-6)
        assert truth.formula_residual > 0.05
