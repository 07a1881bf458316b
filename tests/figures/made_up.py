"""Reports of any size, with numbers that are easy to find again in a figure."""

from typing import Any

from featurespeed.contract import (
    BlockRecommendation,
    Evidence,
    GeometricStatistic,
    LayerMeasurement,
    LossCurves,
    Measurement,
    Properties,
    Property,
    Provenance,
    Recommendation,
    Report,
    StateProperties,
    Statistic,
)


def layer(index: int, name: str, seeds: int, shift: float) -> LayerMeasurement:
    def of(value: float) -> Statistic:
        return Statistic.of([value * (1 + 0.1 * seed) for seed in range(seeds)])

    fields = ("cos", "feature_rms", "feature_speed", "backward_rms", "sensitivity", "contribution", "gradient_norm")
    return LayerMeasurement(
        index=index,
        name=name,
        size=10,
        angle=of(0.5 + shift + index / 1e5),
        **{field: of(0.1 * (i + 1) + shift + index / 1e5) for i, field in enumerate(fields)},
    )


def measurement(names: list[str], step: int = 0, seeds: int = 2, shift: float = 0.0) -> Measurement:
    return Measurement(
        step=step,
        loss=2.0,
        loss_decay=1.0,
        formula_residual=1e-7,
        method="exact",
        loss_over_seeds=Statistic.of([2.0] * seeds),
        layers=tuple(layer(i + 1, name, seeds, shift) for i, name in enumerate(names)),
    )


def block(index: int, name: str, lr: float) -> BlockRecommendation:
    return BlockRecommendation(
        index=index,
        name=name,
        init_std=0.5,
        init_ratio=2.0,
        multiplier=1.0,
        lr=lr,
        init_std_over_seeds=GeometricStatistic.of([0.4, 0.625]),
        lr_over_seeds=GeometricStatistic.of([lr, lr]),
    )


def report(depth: int = 4, steps: tuple[int, ...] = (0,), names: list[str] | None = None, **fields: Any) -> Report:
    names = names or ["input", *(f"hidden_{i}" for i in range(2, depth)), "output"]
    advice = Recommendation(
        master_lr=2.0,
        output_multiplier=1.0,
        relative_sensitivity=0.35,
        feature_step=0.7,
        warmup_fraction=0.05,
        master_lr_over_seeds=GeometricStatistic.of([2.0, 2.0]),
        relative_sensitivity_over_seeds=GeometricStatistic.of([0.35, 0.35]),
        contributions={"input": 1.0, "hidden": 0.5, "output": 2.0},
        blocks=tuple(block(i + 1, name, 0.0 if i == 1 else 0.004) for i, name in enumerate(names)),
        parameters=(),
    )
    made = Provenance(
        featurespeed="0.1.0",
        torch="2",
        python="3",
        device="cpu",
        dtype="float32",
        threads=1,
        seeds=(0, 1),
        spec_sha256=None,
        wall_seconds=1.0,
    )
    whole = {
        "kind": "recommend",
        "recommendation": advice,
        "before": measurement(names, shift=0.3),
        "measurements": tuple(measurement(names, step, shift=0.01 * i) for i, step in enumerate(steps)),
        "provenance": made,
    }
    return Report(**{**whole, **fields})


def curves(steps: int, every: int = 1) -> Evidence:
    falling = tuple(2.0 / (1 + i) for i in range(steps))
    diverged = (*falling[: steps // 2], *[None] * (steps - steps // 2))
    return Evidence(
        loss_curves=LossCurves(
            every=every,
            steps=tuple(every * i for i in range(steps)),
            recommended=falling,
            pytorch_default=diverged,
            recommended_by_seed=(falling, falling),
            pytorch_default_by_seed=(falling, diverged),
        )
    )


def verdicts() -> Properties:
    def state(value: float, reason: str | None) -> StateProperties:
        one = Property(holds=reason is None, value=value, range=(0.5, 2.0), block="input", reason=reason)
        return StateProperties(**dict.fromkeys(("SP", "FL", "LD", "BC", "FS", "BS", "S"), one))

    return Properties(before=state(3.0, "features are <b>large</b>"), after=state(1.0, None))
