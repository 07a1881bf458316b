"""The feature speed formula as pure functions of scalars (paper: Chizat & Netrapalli, arXiv 2311.18718).

For a layer v: ``inner`` is ⟨b_v, ḟ_v⟩, ``size`` is m_v, ``decay`` is D_v = Σ_{l≤v} C_l, and norms are Euclidean.
"""

from __future__ import annotations

import math


def rms(norm: float, size: int) -> float:
    """‖x‖_rms = ‖x‖_2 / sqrt(dim x)."""
    return norm / math.sqrt(size)


def cosine(inner: float, backward_norm: float, speed_norm: float) -> float | None:
    """Cosine of θ_v, the angle between ḟ_v and −b_v (Thm 2.1); ``None`` if either vanishes."""
    scale = backward_norm * speed_norm
    return None if scale == 0 else max(-1.0, min(1.0, -inner / scale))


def angle(cos: float | None) -> float | None:
    """θ_v in radians; beyond π/2 only for updates that are no gradient step."""
    return None if cos is None else math.acos(cos)


def sensitivity(speed_norm: float, size: int, decay: float) -> float | None:
    """S_v = ‖ḟ_v‖_rms / D_v (Eq. 4): feature speed per unit of loss decay; ``None`` if D_v = 0."""
    return None if decay == 0 else rms(speed_norm, size) / decay


def relative_sensitivity(speed_norm: float, feature_norm: float, loss_decay: float) -> float:
    """τ = (‖ḟ_v‖ / ‖f_v‖) / (−L̇): relative feature speed per unit of total loss decay."""
    return speed_norm / feature_norm / loss_decay


def residual(inner: float, decay: float, backward_norm: float, speed_norm: float) -> float:
    """Self-check of Thm 2.1, |−⟨b_v, ḟ_v⟩ − D_v| / (‖b_v‖‖ḟ_v‖): the two sides come from two computations."""
    difference, scale = abs(-inner - decay), backward_norm * speed_norm
    return 0.0 if difference == 0 else difference / scale if scale > 0 else math.inf


def balanced_rate(share: float, unit_contribution: float) -> float:
    """η_l = C_l / ⟨∇_l L, u_l⟩: the rate along direction u_l at which block l contributes ``share`` = C_l.

    Shares of all blocks add up to 1. Equal ones, 1/L, are Eq. 8: η_l = 1/(L ‖∇_l L‖²) for gradient descent.
    """
    return share / unit_contribution
