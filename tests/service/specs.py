"""Specs for tests of the service."""

from featurespeed.contract import parse_request


def spec(seed=0, *, seeds=(0, 1, 2), steps=0, **fields):
    """A tiny spec; ``seed`` is ``data.seed``, by which specs differ and the stand-in engine is told what to do."""
    return {
        "kind": "measure",
        "architecture": {"family": "mlp", "input_dim": 8, "width": 16, "depth": 3, "output_dim": 2},
        "data": {"kind": "gaussian", "batch_size": 8, "seed": seed},
        "loss": "mse",
        "measurement": {"seeds": list(seeds), "steps": steps},
        **fields,
    }


def request(seed=0, **options):
    return parse_request(spec(seed, **options))
