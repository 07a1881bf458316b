"""Tangents of linear maps, convolutions and attention in closed form, against torch's own forward mode."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as fwad
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from featurespeed_workers.reuse import RecordedOutputs, ReusedOutputs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch._dynamo, which torch's own rules load


def tensors(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def tangent_of(function, inputs: list[Tensor], moving: list[bool], mode=None) -> Tensor | None:
    tangents = tensors(len(inputs) + 1, *inputs[0].shape)[1:]
    with fwad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        duals = [
            fwad.make_dual(x, t.expand(x.shape) if t.numel() == x.numel() else torch.ones_like(x)) if m else x
            for x, t, m in zip(inputs, tangents, moving, strict=True)
        ]
        if mode is None:
            return fwad.unpack_dual(function(*duals)).tangent
        with mode:
            return fwad.unpack_dual(function(*duals)).tangent


def check(function, inputs: list[Tensor], moving: list[bool]) -> None:
    with RecordedOutputs() as recorded:
        output = function(*inputs)
    assert torch.equal(recorded.recording[0][0], output)
    ours = tangent_of(function, inputs, moving, ReusedOutputs(recorded.recording))
    theirs = tangent_of(function, inputs, moving)
    assert (ours is None) == (theirs is None)
    if ours is not None:
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


MOVING = [[True, True, True], [True, False, False], [False, True, False], [False, False, True], [False, False, False]]
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
ATTENTION = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "boolean mask": {"attn_mask": CAUSAL},
    "additive mask": {"attn_mask": torch.linspace(-1, 1, 25, dtype=torch.float64).reshape(5, 5)},
}


@pytest.mark.parametrize("moving", MOVING)
@pytest.mark.parametrize("case", ATTENTION)
def test_attention(case: str, moving: list[bool]) -> None:
    def attention(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **ATTENTION[case])

    check(attention, tensors(3, 2, 3, 5, 4), moving)


@pytest.mark.parametrize("moving", MOVING)
def test_heads_of_keys_that_serve_several_queries(moving: list[bool]) -> None:
    [q], [k, v] = tensors(1, 2, 4, 5, 4), tensors(2, 2, 2, 5, 4)
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True, is_causal=True), [q, k, v], moving)


def test_attention_that_drops_weights_goes_to_torch() -> None:
    """A seed for each call: the tangent is that of the mask that torch draws."""

    def attention(q):
        torch.manual_seed(0)
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)

    check(attention, tensors(1, 2, 4, 5, 4), [True])


@pytest.mark.parametrize("moving", MOVING)
@pytest.mark.parametrize("leading", [(), (6,), (2, 3)])
def test_linear(leading: tuple[int, ...], moving: list[bool]) -> None:
    x, [weight], [bias] = tensors(1, *leading, 4)[0], tensors(1, 7, 4), tensors(1, 7)
    check(F.linear, [x, weight, bias], moving)


def test_a_linear_map_by_keywords() -> None:
    [x], [weight] = tensors(1, 6, 4), tensors(1, 7, 4)
    check(lambda x: F.linear(input=x, weight=weight), [x], [True])


@pytest.mark.parametrize("moving", MOVING)
def test_a_linear_map_with_its_matrix_the_other_way_round(moving: list[bool]) -> None:
    [bias], [x], [weight] = tensors(1, 7), tensors(1, 6, 4), tensors(1, 4, 7)
    check(torch.addmm, [bias, x, weight], moving)


def test_sums_of_matrices_with_factors_go_to_torch() -> None:
    [c], [x], [weight] = tensors(1, 6, 7), tensors(1, 6, 4), tensors(1, 4, 7)
    check(lambda c, x, w: torch.addmm(c, x, w, beta=0.5, alpha=2.0), [c, x, weight], [True, True, True])
    check(torch.addmm, [c, x, weight], [True, True, False])


CONVOLUTIONS = {
    "plain": {},
    "stride": {"stride": 2, "padding": 1},
    "same": {"padding": "same", "dilation": 2},
    "groups": {"groups": 2, "padding": (0, 1)},
}


@pytest.mark.parametrize("moving", MOVING)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case: str, moving: list[bool]) -> None:
    options = CONVOLUTIONS[case]
    [x], [weight], [bias] = tensors(1, 2, 4, 6, 5), tensors(1, 6, 4 // options.get("groups", 1), 3, 3), tensors(1, 6)
    check(lambda x, w, c: F.conv2d(x, w, c, **options), [x, weight, bias], moving)
    if not moving[2]:
        check(lambda x, w: F.conv2d(x, w, **options), [x, weight], moving[:2])


def test_one_image_without_a_batch() -> None:
    [x], [weight] = tensors(1, 4, 6, 5), tensors(1, 6, 4, 3, 3)
    check(lambda x, w: F.conv2d(x, w, None, 1, 1), [x, weight], [True, True])
