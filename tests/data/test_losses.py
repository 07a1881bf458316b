"""The losses have the stated normalisation."""

from __future__ import annotations

import math

import pytest
import torch

from featurespeed_workers.losses import loss_function


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_mse_is_half_the_mean_over_examples_of_the_sum_over_outputs(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    f, y = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    examples = math.prod(shape[:-1])
    expected = sum((a - b) ** 2 for a, b in zip(f.flatten().tolist(), y.flatten().tolist(), strict=True)) / 2 / examples
    assert float(loss_function("mse")(f, y)) == pytest.approx(expected, rel=1e-12)


def test_mse_does_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(3, 1\).*\(3,\)"):
        loss_function("mse")(torch.ones(3, 1), torch.ones(3))


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_cross_entropy_is_the_mean_over_examples_and_positions(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, shape, generator=generator)
    rows = zip(logits.flatten(0, -2).tolist(), labels.flatten().tolist(), strict=True)
    losses = [math.log(sum(map(math.exp, row))) - row[label] for row, label in rows]
    expected = sum(losses) / len(losses)
    assert float(loss_function("cross_entropy")(logits, labels)) == pytest.approx(expected, rel=1e-12)
