"""The teacher: a fixed random function that a network can learn from vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

HIDDEN_WIDTH = 64
_TANH_RMS = 0.6279
"""Root mean square of tanh(z), z standard normal."""


class Teacher:
    """``y = V tanh(W x)`` with random W and V.

    x: (batch, inputs) with coordinates of size 1 gives y: (batch, outputs) of rms 1.
    tanh is odd: over symmetric inputs every output has mean 0, so no class of ``argmax y`` is favoured by an offset.
    """

    def __init__(self, inputs: int, outputs: int, *, seed: int) -> None:
        rng = np.random.default_rng([seed, 0x7EAC])  # a stream apart from the batches', which have three numbers
        self._first = rng.standard_normal((inputs, HIDDEN_WIDTH)) / math.sqrt(inputs)
        self._second = rng.standard_normal((HIDDEN_WIDTH, outputs)) / (math.sqrt(HIDDEN_WIDTH) * _TANH_RMS)

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """The teacher's outputs for a batch of inputs."""
        return np.asarray(np.tanh(x @ self._first) @ self._second)
