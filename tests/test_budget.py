"""The closed form counts what is built; the estimate of memory is of the order of what is used."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from featurespeed.budget import GIB, Budget, check_budget, memory_bytes, stability_examples
from featurespeed.contract import Architecture, SpecError, parse_request
from featurespeed_workers.architectures import build
from tests.architectures.cases import CASES, case_id

MLP = {"family": "mlp", "input_dim": 64, "width": 8, "depth": 4, "output_dim": 10}
CONVNET = {
    "family": "convnet",
    "image": {"height": 32, "width": 32, "channels": 3},
    "width": 32,
    "layers": 6,
    "stages": 2,
    "output_dim": 10,
}
LANGUAGE = {"family": "transformer", "layers": 2, "width": 64, "heads": 2, "vocab_size": 96, "context_length": 64}


def spec(architecture: dict[str, Any], **changes: Any) -> dict[str, Any]:
    data = {"kind": "tokens" if "vocab_size" in architecture else "gaussian"}
    return {"kind": "measure", "architecture": architecture, "data": data, "loss": "cross_entropy", **changes}


@pytest.mark.parametrize("architecture", CASES, ids=case_id)
def test_the_closed_form_counts_the_parameters_of_the_module(architecture: Architecture) -> None:
    assert architecture.parameter_count == sum(p.numel() for p in build(architecture, seed=0).module.parameters())


def refusal(document: dict[str, Any], budget: Budget) -> tuple[str, str, str]:
    with pytest.raises(SpecError) as caught:
        check_budget(parse_request(document), budget)
    [error] = caught.value.errors
    return error.field, error.value, error.bound


def test_too_many_parameters() -> None:
    document = spec({**MLP, "width": 65_536, "depth": 4096})
    field, value, bound = refusal(document, Budget())
    assert field == "architecture"
    assert value == "17,583,600,959,488 parameters"
    assert bound == "at most 2,000,000,000 parameters"


def test_too_large_a_batch_is_told_from_too_large_a_network() -> None:
    budget = Budget(max_memory_bytes=GIB // 2)
    batch = spec({**MLP, "width": 512, "depth": 30}, data={"kind": "gaussian", "batch_size": 65_536})
    field, value, bound = refusal(batch, budget)
    assert field == "data.batch_size"
    assert value.startswith("65536: ")
    assert "GiB" in value
    assert bound == "at most 512.0 MiB, by estimate"
    assert refusal(spec({**MLP, "width": 8000}), budget)[0] == "architecture"
    attention = spec({**LANGUAGE, "context_length": 20_000})
    assert refusal(attention, budget)[0] == "architecture"  # one example is too long already


def test_a_budget_is_inclusive() -> None:
    request = parse_request(spec(MLP))
    exact = Budget(max_parameters=request.architecture.parameter_count, max_memory_bytes=memory_bytes(request))
    check_budget(request, exact)
    with pytest.raises(SpecError):
        check_budget(request, Budget(max_memory_bytes=exact.max_memory_bytes - 1))
    with pytest.raises(SpecError):
        check_budget(request, Budget(max_parameters=exact.max_parameters - 1))


def test_precision_and_optimizer_state_count() -> None:
    def of(**changes: Any) -> int:
        return memory_bytes(parse_request(spec({**MLP, "width": 2000}, **changes)))

    def precision(dtype: str) -> int:
        return of(measurement={"dtype": dtype})

    def trained(steps: int, **optimizer: Any) -> int:
        return of(optimizer=optimizer, measurement={"steps": steps})

    assert precision("bfloat16") < precision("float32") < precision("float64")
    assert trained(1, name="sgd") < trained(1, name="sgd", momentum=0.9) < trained(1, name="adam")
    assert trained(0, name="adam") == trained(1, name="sgd")  # what does not train has no moments


def test_the_budget_loads_no_torch() -> None:
    code = "import sys, featurespeed.budget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


STABLE = {"measurement": {"seeds": [0], "stability": True}}


def test_second_derivatives_take_fewer_examples_rather_than_more_memory() -> None:
    architecture = {**LANGUAGE, "layers": 6, "width": 384, "heads": 12, "context_length": 512}
    document = spec(architecture, **STABLE)
    document["data"] = {**document["data"], "batch_size": 64}
    asked = parse_request(document)
    without = parse_request({**document, "measurement": {"seeds": [0]}})
    assert 0 < stability_examples(asked) < 64
    assert stability_examples(without) == 0
    assert memory_bytes(without) <= memory_bytes(asked) <= max(memory_bytes(without), 2 * GIB + 2**28)
    whole = parse_request(spec(MLP, **STABLE))
    assert stability_examples(whole) == whole.data.batch_size
    document = spec({**architecture, "context_length": 32_768}, **STABLE)
    long = parse_request({**document, "data": {"kind": "tokens", "batch_size": 1}})
    assert stability_examples(long) == 0


MEASURE = """
import json, sys
from benchmarks.memory import peak_bytes
from featurespeed.contract import parse_request
from featurespeed_workers.cells import run_cell

large, small = (parse_request(document) for document in json.loads(sys.argv[1]))
run_cell(small, 0)  # loads every library that a measurement needs
before = peak_bytes()
run_cell(large, 0)
print(peak_bytes() - before)
"""


@pytest.mark.parametrize(
    ("architecture", "changes", "batch_size"),
    [
        ({**MLP, "width": 2000, "depth": 12}, {}, 8),  # parameters
        ({**MLP, "width": 1500, "depth": 6}, {"kind": "recommend"}, 8),
        ({**MLP, "width": 500, "depth": 40}, {}, 1024),  # activations
        ({**MLP, "family": "resnet", "width": 400, "depth": 40, "norm": "layernorm"}, {}, 1024),
        ({**LANGUAGE, "layers": 4, "width": 192, "context_length": 128}, {}, 16),
        ({**LANGUAGE, "context_length": 1024}, {}, 2),  # attention matrices
        ({**CONVNET, "norm": "batchnorm"}, {}, 64),
        ({**CONVNET, "norm": "groupnorm", "groups": 8}, STABLE, 16),
        ({**LANGUAGE, "layers": 4, "width": 192, "context_length": 128}, STABLE, 16),
        (
            {**LANGUAGE, "layers": 4, "width": 192, "context_length": 128},
            {"measurement": {"method": "double_backward"}},
            16,
        ),
    ],
    ids=[
        "parameters",
        "recommend",
        "activations",
        "resnet",
        "transformer",
        "attention",
        "convnet",
        "convnet twice",
        "second derivatives",
        "double backward",
    ],
)
def test_the_estimate_is_within_a_factor_of_three_of_the_peak(
    architecture: dict[str, Any], changes: dict[str, Any], batch_size: int
) -> None:
    small = spec(
        {**architecture, **({"layers": 2} if "layers" in architecture else {"depth": 2}), "width": 8}, **changes
    )
    large = spec(architecture, **changes)
    for document, size in ((small, 2), (large, batch_size)):
        document["data"] = {**document["data"], "batch_size": size}
    check_peak(large, small)


def check_peak(large: dict[str, Any], small: dict[str, Any]) -> None:
    """That the estimate of ``large`` is of the order of its peak; ``small`` loads what both need."""
    arguments = [sys.executable, "-c", MEASURE, json.dumps([large, small])]
    peak = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    estimate = memory_bytes(parse_request(large))
    assert estimate / 3 < peak < estimate * 3, (estimate, peak, estimate / peak)


def test_the_estimate_of_a_graph() -> None:
    """A U-Net: what a long skip spans is one block, most of its features are at no cut node."""
    large, small = (
        spec(
            {
                "family": "graph",
                "input": {"shape": [3, side, side]},
                "layers": [
                    {"layer": "conv", "name": "stem", "channels": channels, "kernel": 3},
                    {"layer": "activation", "name": "act", "function": "silu"},
                    {"layer": "pool", "name": "down", "kernel": 2, "function": "max"},
                    {"layer": "conv", "name": "deep", "channels": 2 * channels, "kernel": 3},
                    {"layer": "norm", "name": "norm", "norm": "batchnorm"},
                    {"layer": "activation", "name": "low", "function": "silu"},
                    {"layer": "upsample", "name": "up"},
                    {"layer": "concat", "name": "skip", "inputs": ["act", "up"]},
                    {"layer": "conv", "name": "merge", "channels": channels, "kernel": 3},
                    {"layer": "pool", "name": "mean"},
                    {"layer": "linear", "name": "head", "width": 10},
                ],
            },
            data={"kind": "gaussian", "batch_size": batch_size},
        )
        for side, channels, batch_size in ((48, 32, 32), (8, 4, 2))
    )
    check_peak(large, small)


@pytest.mark.parametrize(
    ("architecture", "config", "least"),
    [
        (  # with dropout, hence with attention that is written out
            {"model_type": "gpt2"},
            {"vocab_size": 512, "n_embd": 192, "n_layer": 4, "n_head": 6},
            {"vocab_size": 11, "n_embd": 6, "n_layer": 1, "n_head": 6},
        ),
        (
            {"model_type": "convnext"},
            {"hidden_sizes": [48, 96, 192], "depths": [2, 2, 2], "num_stages": 3, "image_size": 64},
            {"hidden_sizes": [6], "depths": [1], "num_stages": 1, "image_size": 8},
        ),
    ],
    ids=["gpt2", "convnext"],
)
def test_the_estimate_of_a_model_of_transformers(
    architecture: dict[str, Any], config: dict[str, Any], least: dict[str, Any]
) -> None:
    pytest.importorskip("transformers")
    kind = "tokens" if "vocab_size" in config else "gaussian"
    large, small = (
        spec({"family": "huggingface", **architecture, "config": fields}, data={"kind": kind, "batch_size": size})
        for fields, size in ((config, 24), (least, 2))
    )
    check_peak(large, small)
