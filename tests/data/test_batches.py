"""The distributions that the contract states, and that a batch is the same whenever and wherever it is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from featurespeed.contract import JobRequest, SpecError, parse_request
from featurespeed_workers.data import Source, load
from featurespeed_workers.teacher import Teacher

CPU = torch.device("cpu")
MLP = {"family": "mlp", "input_dim": 20, "width": 8, "depth": 3, "output_dim": 4}
DIGITS = {**MLP, "input_dim": 64, "output_dim": 12}
LANGUAGE = {"family": "transformer", "layers": 1, "width": 8, "heads": 2, "vocab_size": 10, "context_length": 50}
IMAGE = {"height": 4, "width": 6, "channels": 2, "patch": 2}
VISION = {"family": "transformer", "layers": 1, "width": 8, "heads": 2, "image": IMAGE, "output_dim": 3}


def request(architecture: dict[str, Any], data: dict[str, Any], loss: str = "cross_entropy") -> JobRequest:
    return parse_request({"kind": "measure", "architecture": architecture, "data": data, "loss": loss})


def source(architecture: dict[str, Any], data: dict[str, Any], loss: str = "cross_entropy", **options: Any) -> Source:
    return load(
        request(architecture, data, loss), **{"dataset": None, "dtype": torch.float64, "device": CPU, **options}
    )


def dataset_file(path: Path, n: int = 30) -> Path:
    inputs = np.arange(n, dtype=np.float32)[:, None] * np.ones(20, dtype=np.float32)
    save_file({"inputs": inputs, "targets": np.arange(n, dtype=np.int32) % 4}, path)
    return path


@pytest.fixture
def anything(tmp_path: Path) -> list[Callable[..., Source]]:
    file = dataset_file(tmp_path / "set.safetensors")
    named = {"kind": "dataset", "sha256": "0" * 64, "batch_size": 7}
    return [
        lambda seed=0, **o: source(MLP, {"kind": "gaussian", "seed": seed}, **o),
        lambda seed=0, **o: source(MLP, {"kind": "gaussian", "seed": seed, "targets": "teacher"}, "mse", **o),
        lambda seed=0, **o: source(VISION, {"kind": "sphere", "seed": seed}, "mse", **o),
        lambda seed=0, **o: source(LANGUAGE, {"kind": "tokens", "seed": seed}, **o),
        lambda seed=0, **o: source(DIGITS, {"kind": "digits", "seed": seed}, **o),
        lambda seed=0, **o: source(MLP, {**named, "seed": seed}, dataset=file, **o),
    ]


def test_a_batch_depends_on_its_three_numbers_alone(anything: list[Callable[..., Source]]) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.random.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()
    for make in anything:
        first = make()
        x, y = first.batch(3, 5)
        for other in (first.batch(3, 6), first.batch(4, 5), first.batch(5, 3), make(seed=1).batch(3, 5)):
            assert not torch.equal(x, other[0])
        again = make().batch(3, 5)
        assert torch.equal(x, again[0])
        assert torch.equal(y, again[1])
        single = make(dtype=torch.float32).batch(3, 5)
        assert single[0].dtype == (torch.float32 if x.is_floating_point() else torch.int64)
        assert torch.equal(x.float(), single[0].float())
    assert torch.equal(before, torch.random.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()


@pytest.mark.parametrize("kind", ["gaussian", "sphere"])
@pytest.mark.parametrize("norm", [None, 0.5])
def test_the_norm_of_vectors(kind: str, norm: float | None) -> None:
    x, _ = source(MLP, {"kind": kind, "batch_size": 20_000, "input_norm": norm}).batch(0, 0)
    wanted = norm or math.sqrt(20)
    assert x.shape == (20_000, 20)
    squared = x.square().sum(dim=1)
    if kind == "sphere":
        torch.testing.assert_close(squared, torch.full_like(squared, wanted**2))
    else:
        assert float(squared.mean()) == pytest.approx(wanted**2, rel=0.01)
        assert float(squared.std()) == pytest.approx(wanted**2 * math.sqrt(2 / 20), rel=0.05)
    covariance = x.T @ x / len(x)
    torch.testing.assert_close(covariance, torch.eye(20, dtype=x.dtype) * wanted**2 / 20, rtol=0, atol=0.05 * wanted**2)
    assert x.mean(dim=0).abs().max() < 0.05 * wanted


def test_targets_of_vectors() -> None:
    size = {"batch_size": 8000}
    _, labels = source(MLP, {"kind": "gaussian", **size}).batch(0, 0)
    assert labels.dtype == torch.int64
    assert labels.shape == (8000,)
    assert torch.bincount(labels, minlength=4).tolist() == pytest.approx([2000] * 4, rel=0.1)
    _, y = source(MLP, {"kind": "gaussian", **size}, "mse").batch(0, 0)
    assert y.shape == (8000, 4)
    assert float(y.square().mean()) == pytest.approx(1, rel=0.05)
    _, ones = source(MLP, {"kind": "sphere", **size, "targets": "ones"}, "mse", dtype=torch.float32).batch(0, 0)
    assert torch.equal(ones, torch.ones(8000, 4))


@pytest.mark.parametrize("norm", [None, 3.0])
def test_a_teacher_is_one_function_of_the_input_direction_and_scale(norm: float | None) -> None:
    data = {"kind": "sphere", "targets": "teacher", "batch_size": 4000, "input_norm": norm, "seed": 2}
    regression, classes = source(MLP, data, "mse"), source(MLP, data)
    teacher = Teacher(20, 4, seed=2)
    for seed, step in ((0, 0), (1, 3)):  # the same function at every step and seed
        x, y = regression.batch(seed, step)
        unit = x.numpy() * math.sqrt(20) / (norm or math.sqrt(20))
        np.testing.assert_allclose(y.numpy(), teacher(unit), rtol=1e-10, atol=1e-12)
        assert float(y.square().mean()) == pytest.approx(1, rel=0.3)
        x_again, labels = classes.batch(seed, step)
        assert torch.equal(x, x_again)
        assert torch.equal(labels, y.argmax(dim=1))
        assert torch.bincount(labels, minlength=4).min() > 400


@pytest.mark.parametrize(("distribution", "exponent"), [("uniform", 1.0), ("zipf", 1.0), ("zipf", 2.5), ("zipf", 0.0)])
def test_tokens_have_their_frequencies_and_the_next_token_as_target(distribution: str, exponent: float) -> None:
    data = {"kind": "tokens", "batch_size": 4000, "distribution": distribution, "exponent": exponent}
    x, y = source(LANGUAGE, data).batch(0, 0)
    assert x.shape == y.shape == (4000, 50)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    weights = np.array([1.0] * 10) if distribution == "uniform" else np.arange(1.0, 11.0) ** -exponent
    expected = weights / weights.sum()
    found = np.bincount(x.flatten().numpy(), minlength=10) / x.numel()
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(expected.max() / x.numel()))


def test_tokens_for_a_classifier_have_one_label_each() -> None:
    x, y = source({**LANGUAGE, "output_dim": 3}, {"kind": "tokens", "batch_size": 300}).batch(0, 0)
    assert x.shape == (300, 50)
    assert set(y.tolist()) == {0, 1, 2}
    assert y.shape == (300,)


def test_images_have_the_shape_of_images() -> None:
    x, _ = source(VISION, {"kind": "gaussian", "batch_size": 5}).batch(0, 0)
    assert x.shape == (5, 2, 4, 6)


def test_digits_are_all_of_them_standardised() -> None:
    x, y = source(DIGITS, {"kind": "digits", "batch_size": 1797}).batch(0, 0)
    assert x.shape == (1797, 64)
    assert float(x.mean()) == pytest.approx(0, abs=1e-12)
    assert float(x.square().sum(dim=1).mean()) == pytest.approx(64)
    assert torch.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as published
    assert len(torch.unique(x, dim=0)) > 1790  # without replacement
    x_again, one_hot = source(DIGITS, {"kind": "digits", "batch_size": 1797}, "mse").batch(0, 0)
    assert torch.equal(x, x_again)
    assert torch.equal(one_hot, torch.nn.functional.one_hot(y, 12).double())


def test_a_dataset_gives_its_rows_without_replacement(tmp_path: Path) -> None:
    file = dataset_file(tmp_path / "set.safetensors")
    data = {"kind": "dataset", "sha256": "0" * 64, "batch_size": 30}
    x, y = source(MLP, data, dataset=file).batch(0, 0)
    assert sorted(x[:, 0].tolist()) == list(range(30))
    assert torch.equal(x[:, 0].long() % 4, y)


def test_a_batch_larger_than_the_dataset_is_refused(tmp_path: Path) -> None:
    file = dataset_file(tmp_path / "set.safetensors")
    with pytest.raises(SpecError) as caught:
        source(MLP, {"kind": "dataset", "sha256": "0" * 64, "batch_size": 31}, dataset=file)
    [error] = caught.value.errors
    assert (error.field, error.value) == ("data.batch_size", 31)
    assert "30" in error.bound
