"""By which method a network is measured: forward mode, or what stands in where an operator has no rule for it.

``exact`` is tried first, then ``double_backward`` (exact as well, at the memory of a second derivative), then
``central_difference``. What was found holds for all later measurements of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from featurespeed.contract.request import Method
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.network import Fallback
from featurespeed_workers.velocity import NoRuleError

if TYPE_CHECKING:
    from featurespeed_workers.balance import Slope
    from featurespeed_workers.measurement import StateMeasurement

Found = tuple["StateMeasurement", dict[str, "Slope"]]

ORDER: tuple[Method, ...] = ("exact", "double_backward", "central_difference")
RESIDUAL_BOUNDS = {"float32": 1e-4, "float64": 1e-10}
"""The two sides of the formula must agree to this, relatively, where ḟ is differentiated; in less precision to 5e-2."""
DIFFERENCE_BOUND = 5e-2
SUSPICIOUS = 10.0
"""So many times beyond its bound, a residual is no rounding: an operator lost the tangent without a word."""


DISAGREEMENT = 0.02
"""The residual that differences may have beside double backward; on 48 nets in float32 they were off by 0.003."""


def residual_bound(method: Method, precision: str | None) -> float:
    """How large ``formula_residual`` may be, by the dtype that the signal passes through."""
    differentiated = method in ("exact", "double_backward")
    return RESIDUAL_BOUNDS.get(precision or "", DIFFERENCE_BOUND) if differentiated else DIFFERENCE_BOUND


def by_first_that_works(fallback: Fallback, asked: Method, attempt: Callable[[Method], Found]) -> Found:
    """The measurement by the method that was asked for, or, for ``exact``, by the first that can be relied on.

    Operators of ``torch.library`` without a forward-mode rule drop the tangent silently. The formula's residual tells:
    then the next method is tried, and taken if its two sides agree at least ten times better.
    """
    if asked != "exact":
        try:
            return attempt(asked)
        except NoRuleError as error:
            raise MeasurementError("not-differentiable", f"{error}; method central_difference needs no rule") from error
    if fallback.settled:
        try:
            found, slopes = attempt(fallback.method)
            if found.formula_residual <= fallback.largest_residual:
                return _told(found, fallback), slopes
        except NoRuleError:
            pass  # control flow has come to another operator, as where a residual has grown
    return _settle(fallback, attempt)


def _settle(fallback: Fallback, attempt: Callable[[Method], Found]) -> Found:
    best: Found | None = None
    reasons: list[str] = []
    for method in ORDER:
        try:
            now = attempt(method)
        except NoRuleError as error:
            reasons.append(str(error))
            continue
        if best is None or now[0].formula_residual * SUSPICIOUS < best[0].formula_residual:
            best = now
        if now[0].formula_residual <= SUSPICIOUS * residual_bound(method, now[0].precision):
            break
        if method == "exact":
            reasons.append("an operator gives its forward-mode derivative wrong, or none")
    assert best is not None  # differences need no rule
    fallback.method, fallback.settled = best[0].method, True
    tolerated = SUSPICIOUS * max(best[0].formula_residual, residual_bound("exact", best[0].precision))
    fallback.largest_residual = tolerated if best[0].method == "exact" else math.inf
    fallback.cos_error = _disagreement(attempt) if fallback.method == "double_backward" else None
    if fallback.cos_error is not None:
        reasons.append("a backward pass is not the derivative of its forward pass, by mistake or on purpose")
    fallback.reason = " and ".join(dict.fromkeys(reasons)) if fallback.method != "exact" else None
    return _told(best[0], fallback), best[1]


def _told(found: StateMeasurement, fallback: Fallback) -> StateMeasurement:
    error = found.cos_error if fallback.cos_error is None else fallback.cos_error
    return replace(found, reason=fallback.reason, cos_error=error)


def _disagreement(attempt: Callable[[Method], Found]) -> float | None:
    """The formula's residual for differences of the features; ``None`` if that is no larger than it may be.

    Double backward takes a backward pass at its word, so that the formula holds whatever that computes; differences
    know of none. A module that cannot run without a graph has no differences to compare with.
    """
    try:
        found, _ = attempt("central_difference")
    except (RuntimeError, MeasurementError):
        return None
    allowed = DISAGREEMENT if found.precision in RESIDUAL_BOUNDS else DIFFERENCE_BOUND
    return found.formula_residual if found.formula_residual > allowed else None
