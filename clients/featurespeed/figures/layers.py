"""Figures over the blocks of a network: angles, contributions, and the sizes behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from featurespeed.contract.blocks import group_of
from featurespeed.contract.report import LayerMeasurement, Measurement, Recommendation, Report
from featurespeed.figures.states import Quantity, State, lines, names_of, states_of
from featurespeed.figures.style import (
    GREY,
    MOST_MARKS,
    Figure,
    axis,
    block_axis,
    label,
    layout,
    level,
    log_axis,
    picked,
    rounded,
    text,
)


def angles(report: Report, other: Report | None = None) -> Figure:
    """θ_v by block, with the band over seeds; at π/2 a step does not move the feature along −b_v."""
    states = states_of(report, other)
    known = [v for s in states for layer in s.measured.layers for v in layer.angle.values if v is not None]
    top = max([math.pi / 2, *known]) * 1.06
    return Figure(
        "angles",
        "Angle θ between feature update and backward pass",
        "Small angles: the step moves the features where the loss falls fastest. At π/2 it does not. "
        "The band is the range over seeds.",
        tuple(lines(states, lambda _, layer: layer.angle.values)),
        layout(
            xaxis=block_axis(names_of(states)),
            yaxis=axis("angle θ (radians)", range=[0, top]),
            shapes=[level(math.pi / 2)],
            annotations=[label("π/2", math.pi / 2)],
        ),
    )


def contributions(report: Report, other: Report | None = None) -> Figure:
    """C_v as a part of the loss decay, by block, and the part that each block should have."""
    states = states_of(report, other)
    names = names_of(states)
    few = len(names) <= MOST_MARKS
    drawn = [t for s in states for t in ([_bars(s)] if few else lines([s], _shares(s.measured)))]
    return Figure(
        "contributions",
        "Contribution of each block to the loss decay",
        "How much of the loss decay of a step comes from each block, to first order. The ticks are the balanced level "
        "that the recommended rates are made for.",
        (*drawn, _balanced(report)),
        layout(
            xaxis=block_axis(names),
            yaxis=axis("part of the loss decay (%)", ticksuffix=" %", rangemode="tozero"),
            barmode="group",
            bargap=0.25,
        ),
    )


def _total(measured: Measurement) -> float:
    return math.fsum(layer.contribution.mean or 0.0 for layer in measured.layers)


def _shares(measured: Measurement) -> Quantity:
    """Of every seed's contribution to the loss decay, in per cent of the whole decay's mean."""
    total = _total(measured)

    def share(_: Measurement, layer: LayerMeasurement) -> list[float | None]:
        return [None if v is None or total == 0 else 100 * v / total for v in layer.contribution.values]

    return share


def _bars(state: State) -> dict[str, Any]:
    layers, total = state.measured.layers, _total(state.measured)
    parts = [100 * (layer.contribution.mean or 0.0) / total if total else None for layer in layers]
    return {
        "type": "bar",
        "x": [layer.index for layer in layers],
        "y": rounded(parts),
        "customdata": [text(layer.name) for layer in layers],
        "name": state.label,
        "marker": {"color": state.color, "pattern": {"shape": _PATTERNS[state.dash], "fgopacity": 0.6}},
        "hovertemplate": f"%{{customdata}}: %{{y:.3g}} %<extra>{state.label}</extra>",
    }


_PATTERNS = {"solid": "", "dash": "/", "dot": "."}


def _balanced(report: Report) -> dict[str, Any]:
    names = [layer.name for layer in report.measurements[0].layers]
    shares = _wanted(report.recommendation, names)
    chosen = picked(len(names))
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [i + 1 for i in chosen],
        "y": rounded([100 * shares[i] for i in chosen]),
        "name": "balanced level",
        "marker": {"symbol": "line-ew", "size": 16, "color": GREY, "line": {"width": 2.5, "color": GREY}},
        "hovertemplate": "%{y:.3g} % wanted<extra></extra>",
    }


def _wanted(advice: Recommendation | None, names: Sequence[str]) -> list[float]:
    """The part of each block: by the weight of its group among those that train, else equal."""
    weights = [1.0] * len(names)
    if advice is not None and advice.contributions is not None:
        trained = [block.lr != 0 for block in advice.blocks]
        last = len(names) - 1
        groups = ["input" if i == 0 else "output" if i == last else group_of(n) for i, n in enumerate(names)]
        weights = [advice.contributions[g] if t else 0.0 for g, t in zip(groups, trained, strict=True)]
    total = sum(weights) or 1.0
    return [w / total for w in weights]


def _relative_speed(measured: Measurement, layer: LayerMeasurement) -> list[float | None]:
    """‖ḟ‖ / ‖f‖ for each unit of loss decay, whatever the learning rates."""
    pairs = zip(layer.feature_speed.values, layer.feature_rms.values, strict=True)
    decay = measured.loss_decay
    return [s / r / decay if s is not None and r and decay > 0 else None for s, r in pairs]


def _positive(values: Sequence[float | None]) -> list[float | None]:
    return [v if v is not None and v > 0 else None for v in values]


SIZES: tuple[tuple[str, Quantity], ...] = (
    ("feature rms ‖f‖", lambda _, layer: _positive(layer.feature_rms.values)),
    ("relative feature speed ‖ḟ‖/‖f‖ (per nat of loss)", lambda m, layer: _positive(_relative_speed(m, layer))),
    ("backward rms ‖b‖ (nat per unit of f)", lambda _, layer: _positive(layer.backward_rms.values)),
    ("sensitivity S = ‖ḟ‖/D (per nat)", lambda _, layer: _positive(layer.sensitivity.values)),
)


def sizes(report: Report, other: Report | None = None) -> Figure:
    """Feature rms, feature speed, backward rms and sensitivity by block, each with a logarithmic axis of its own."""
    states = states_of(report, other)
    names = names_of(states)
    data: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    titles: list[dict[str, Any]] = []
    for i, (title, quantity) in enumerate(SIZES):
        number = "" if i == 0 else str(i + 1)
        column, row = i % 2, i // 2
        x0, y0 = (0.0, 0.55)[column], (0.58, 0.0)[row]
        data += lines(states, quantity, (f"x{number}", f"y{number}"), legend=i == 0)
        bottom = "block" if row == 1 else ""
        axes[f"xaxis{number}"] = block_axis(names, bottom, domain=[x0, x0 + 0.45], anchor=f"y{number}")
        axes[f"yaxis{number}"] = log_axis("", domain=[y0, y0 + 0.40], anchor=f"x{number}")
        where = {"xref": "paper", "x": x0, "xanchor": "left", "yref": "paper", "y": y0 + 0.41, "yanchor": "bottom"}
        titles.append({"text": title, **where, "showarrow": False, "font": {"size": 12}})
    return Figure(
        "sizes",
        "Size and speed of features, and of the backward pass",
        "Each panel has a logarithmic axis. Features of size 1 that move at a common speed are what the recommendation "
        "aims at.",
        tuple(data),
        layout(620, annotations=titles, **axes, legend={"orientation": "h", "x": 0, "y": 1.06, "yanchor": "bottom"}),
    )
