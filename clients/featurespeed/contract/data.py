"""Data: what the network is measured on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from featurespeed.contract.base import BatchSize, Model, Positive, Seed

Targets = Literal["gaussian", "ones", "classes", "teacher"]


class _Data(Model):
    batch_size: BatchSize = 128
    seed: Seed = 0


class _Vectors(_Data):
    """Random vectors x in R^input_dim; ``input_norm`` is the wanted ‖x‖_2 (default ``sqrt(input_dim)``).

    ``targets``: ``gaussian`` (default for mse), ``ones``, ``classes`` (uniform labels; default for cross_entropy) or
    ``teacher`` (a fixed random MLP's outputs, or its argmax for cross_entropy).
    """

    input_norm: Positive | None = None
    targets: Targets | None = None


class Gaussian(_Vectors):
    """Independent normal coordinates, E‖x‖² = input_norm²."""

    kind: Literal["gaussian"]


class Sphere(_Vectors):
    """Uniform on the sphere ‖x‖_2 = input_norm."""

    kind: Literal["sphere"]


class Tokens(_Data):
    """Independent tokens, uniform or Zipf (p_i ∝ i^-exponent); the target of a position is the next token."""

    kind: Literal["tokens"]
    batch_size: BatchSize = 16
    distribution: Literal["uniform", "zipf"] = "zipf"
    exponent: Annotated[float, Field(ge=0, le=10)] = 1.0


class Digits(_Data):
    """scikit-learn's 1,797 handwritten digits, 8 × 8, standardised so that E‖x‖² = 64; one-hot targets under mse."""

    kind: Literal["digits"]
    batch_size: Annotated[int, Field(ge=1, le=1797)] = 128


class Dataset(_Data):
    """An uploaded safetensors file with tensors ``inputs`` and ``targets``, addressed by its SHA-256.

    A specification on disk may say ``path`` instead of ``sha256``: the command line uploads the file.
    """

    kind: Literal["dataset"]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Data = Annotated[Gaussian | Sphere | Tokens | Digits | Dataset, Field(discriminator="kind")]
