"""Angles and sensitivities of ReLU networks at initialization in the limit of infinite width, balanced rates.

One input; ``f_l = a f_{l-1} + β W_l D_l f_{l-1}`` with a² = 1 - β², W normal of variance 2/m, D the ReLU's mask (half
of it ones). With n trained blocks up to v, block r steps before v moves f_v by ``-C J_r J_rᵀ b_v / ‖b_v‖²``, where J_r
is the Jacobian of the last r blocks and C the same for all. So with M_r the mean squared eigenvalue of J_r J_rᵀ,

    1 / cos² θ_v = n^-2 Σ_{r,s<n} M_min(r,s) = n^-2 Σ_{r<n} (2(n-r) - 1) M_r.

One block more, the lowest, adds to M_r (freeness of W from the rest):

    M_0 = 1,   M_{r+1} = M_r + 2 a² β² (1 + ε_r) + 2 β⁴,   ε_r = tr((2D - 1) J_rᵀ J_r) / m.

ε is there because the masks of one residual stream agree from layer to layer: by the recursion
``E J_{r+1}ᵀ J_{r+1} = a² E J_rᵀ J_r + 2 β² D`` it is ``ε_r = β² Σ_{j≤r} a^(2j-2) q(a^j)``, q(ρ) = (2/π) arcsin ρ the
correlation of the signs of two normal variables of correlation ρ.

For an MLP (β = 1, so ε = 0) it follows that 1 / cos² θ_v = (2n² + 1) / (3n): cos θ_v = Θ(v^-1/2), Prop 5.1. For
β = c/√L the limit of large L depends on c alone: tan² θ = 2c²/3 + O(c⁴). Corrections at finite width are of relative
order n β²/m.
"""

from __future__ import annotations

import math

import numpy as np

DEEP = 20_000
"""A depth at which the limit of large depth has been reached to four digits."""


def cosine(trained: int, beta: float) -> float:
    """cos θ_v, where ``trained`` consecutive blocks train, the last of them block v."""
    n, a2, b2 = trained, 1 - beta**2, beta**2
    steps = np.arange(1, n)
    agreement = b2 * a2 ** (steps - 1.0) * (2 / math.pi) * np.arcsin(a2 ** (steps / 2))
    epsilon = np.concatenate([[0.0], np.cumsum(agreement)])[: n - 1]
    moments = 1 + np.concatenate([[0.0], np.cumsum(2 * a2 * b2 * (1 + epsilon) + 2 * b2**2)])
    return n / math.sqrt(float((2 * (n - np.arange(n)) - 1) @ moments))


def angle(trained: int, beta: float) -> float:
    """θ_v in radians."""
    return math.acos(min(1.0, cosine(trained, beta)))


def angle_at_depth(c: float) -> float:
    """Limit of θ_{L-1} for β = c/√L as L → ∞ (after the width)."""
    return angle(DEEP, c / math.sqrt(DEEP))


def sensitivity(trained: int, beta: float, width: int, backward_rms: float) -> float:
    """S_v = 1 / (cos θ_v · m_v · ‖b_v‖_rms) (Thm 2.1) for one input."""
    return 1 / (cosine(trained, beta) * width * backward_rms)
