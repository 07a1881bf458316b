"""Report: the answer, with its evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from featurespeed.contract.base import Model
from featurespeed.contract.evidence import BranchScale, Evidence
from featurespeed.contract.optimizer import OptimizerName
from featurespeed.contract.properties import KernelCosine, Properties, StabilityMeasurement
from featurespeed.contract.refinement import Refinement
from featurespeed.contract.request import Granularity, Kind, Method
from featurespeed.contract.statistic import GeometricStatistic as GeometricStatistic
from featurespeed.contract.statistic import Statistic as Statistic

if TYPE_CHECKING:
    import plotly
    import torch

Scales = Literal["set", "kept"]


class LayerMeasurement(Model):
    """What was measured at cut node f_l; ``size`` is m_l, the number of coordinates of f_l over the whole batch.

    angle: θ_l, radians. cos: its cosine. feature_rms: ‖f_l‖_rms. feature_speed: ‖ḟ_l‖_rms per unit of training time.
    backward_rms: ‖b_l‖_rms. sensitivity: S_l = ‖ḟ_l‖_rms / D_l, per unit of loss. contribution: C_l, loss per unit of
    time. gradient_norm: ‖∇_l L‖_2. balanced_rate_drift, along training: Eq. 8's rate of the block here over that at
    step 0 (of the step that momentum builds up to); ``None`` in a seed where there is no such rate. kernel_cos:
    M_1/√M_2 of the kernel K_l, what cos would be for a backward pass independent of the kernel; ``None`` unless
    ``measurement.kernel_probes`` asks for it, at step 0.
    """

    index: int
    name: str
    size: int
    angle: Statistic
    cos: Statistic
    feature_rms: Statistic
    feature_speed: Statistic
    backward_rms: Statistic
    sensitivity: Statistic
    contribution: Statistic
    gradient_norm: Statistic
    balanced_rate_drift: Statistic | None = None
    kernel_cos: KernelCosine | None = None


class Measurement(Model):
    """All layers at one step of training; ``loss`` and ``loss_decay`` (−L̇) are means over seeds.

    ``formula_residual``: largest over layers and seeds of ``|−⟨b_v,ḟ_v⟩ − D_v| / (‖b_v‖‖ḟ_v‖)``; the two sides of the
    feature speed formula come from two different computations. ``method`` says how ḟ was found: ``exact`` by forward
    mode; where an operator has no rule for that, by ``double_backward``, and where it has no second derivative either
    by ``central_difference``; a warning then names it. ``cos_error``: the largest error that differences are estimated
    to add to a cos θ; ``None`` for the methods that differentiate, whose error is rounding alone.
    """

    step: int
    loss: float
    loss_decay: float
    formula_residual: float
    method: Method
    cos_error: float | None = None
    loss_over_seeds: Statistic
    layers: tuple[LayerMeasurement, ...]


class BlockRecommendation(Model):
    """Scale and rate of one block. ``lr`` is ready to use: the block LR η_l already multiplied by the master LR.

    Under granularity ``tensor`` it is the harmonic mean of the tensors' rates, the one rate at which the block would
    contribute the same, under rule ``mup`` that of its matrices; the rates themselves are those of the parameters.
    ``init_std`` is the std over all weight matrices of the block; ``multiplier`` is a factor on the block's output
    (1: all scale is in the initialization). ``note`` says what a reader must know, such as a scale that a norm layer
    makes immaterial. ``first_lr``, of an output that starts at zero: the learning rate of the first step, without
    warm-up, in place of ``lr``. ``module`` is the path of the submodule whose output is the cut node. ``init_ratio`` is
    ``init_std`` over that of the model's own default initialization (``None`` where that is 0).
    """

    index: int
    name: str
    module: str | None = None
    init_std: float
    init_ratio: float | None = None
    multiplier: float
    lr: float
    init_std_over_seeds: GeometricStatistic
    lr_over_seeds: GeometricStatistic
    first_lr: float | None = None
    first_lr_over_seeds: GeometricStatistic | None = None
    note: str | None = None


class ParameterRecommendation(Model):
    """Initialization of one tensor, ``init_mean`` + ``init_std`` · noise, and its learning rate.

    ``first_lr`` is that of the first step, if it has one of its own (see BlockRecommendation). ``optimizer`` is the one
    that the rate is for (``None`` for a frozen parameter). ``init_ratio``: root mean square over that of the default
    initialization.
    """

    name: str
    block: str
    shape: tuple[int, ...]
    init_mean: float
    init_std: float
    init_ratio: float | None = None
    lr: float
    first_lr: float | None = None
    optimizer: OptimizerName | None = None


class Recommendation(Model):
    """Initialization scale and learning rate of every block, and the constants behind them.

    ``master_lr`` δt is already multiplied into every ``lr``. ``relative_sensitivity`` is the τ that was reached,
    ``feature_step`` the κ that the rule took (the geometric mean over seeds), refined if ``refinement`` is there.
    ``output_multiplier`` is the factor on the output (1: it is in ``init_std``).
    ``contributions``: the weight of each group's blocks in the loss decay, behind the rates; ``granularity``: what has
    a rate of its own. ``scales``: ``set`` by the rule, or ``kept``, those of a checkpoint: ``init_mean`` and
    ``init_std`` are then what its tensors have, and τ is the one measured there.
    τ, κ, weights and granularity are ``None`` for rules that do not use them.
    """

    master_lr: float
    output_multiplier: float
    relative_sensitivity: float | None
    feature_step: float | None
    warmup_fraction: float
    master_lr_over_seeds: GeometricStatistic
    relative_sensitivity_over_seeds: GeometricStatistic | None
    contributions: dict[str, float] | None = None
    granularity: Granularity | None = None
    scales: Scales = "set"
    refinement: Refinement | None = None
    blocks: tuple[BlockRecommendation, ...]
    parameters: tuple[ParameterRecommendation, ...]


class Provenance(Model):
    """What is needed to get the same numbers again."""

    featurespeed: str
    torch: str
    python: str
    device: str
    dtype: str
    threads: int
    seeds: tuple[int, ...]
    spec_sha256: str | None
    wall_seconds: float


class Report(Model):
    """The answer to a JobRequest. ``recommendation`` is there for kind ``recommend`` only.

    ``stability`` is that of the first measurement, at the recommended scales. ``before``, for kind ``recommend``: the
    layers of the state that ``properties.before`` judges (PyTorch's defaults, or a module of the user's as it is),
    along the update that the optimizer settles to there, with learning rate 1 for all; with a checkpoint, along its
    next step at the present learning rates. ``None`` if it cannot be measured.
    """

    kind: Kind
    recommendation: Recommendation | None = None
    measurements: tuple[Measurement, ...]
    before: Measurement | None = None
    properties: Properties | None = None
    stability: StabilityMeasurement | None = None
    branch_scale: BranchScale | None = None
    evidence: Evidence | None = None
    warnings: tuple[str, ...] = ()
    provenance: Provenance

    def apply(self, model: torch.nn.Module) -> None:
        """Set the initialization of ``model`` in place to the recommended one; see :func:`featurespeed.apply.apply`."""
        from featurespeed.apply import apply

        apply(self, model)

    def param_groups(self, model: torch.nn.Module, *, optimizer: OptimizerName | None = None) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimizer; see :func:`featurespeed.apply.param_groups`."""
        from featurespeed.apply import param_groups

        return param_groups(self, model, optimizer=optimizer)

    def plot(self, other: Report | None = None) -> dict[str, plotly.graph_objects.Figure]:
        """The figures that there are numbers for, by name in reading order, as plotly's; ``other`` is drawn beside.

        Needs the extra ``plot``; raises ModuleNotFoundError without it.
        """
        import plotly.graph_objects as go

        from featurespeed.figures import figures_of

        return {name: go.Figure(figure.to_dict()) for name, figure in figures_of(self, other, verdicts=True).items()}

    def _repr_html_(self) -> str:
        """What a notebook shows: the tables, and two figures if matplotlib is there."""
        from featurespeed.figures.notebook import shown

        return shown(self)
