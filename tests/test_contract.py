"""Every bad specification is refused with field, value and bound; the good ones mean what they say."""

from __future__ import annotations

import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from featurespeed.contract import (
    FieldError,
    JobRequest,
    Mlp,
    ResNet,
    SpecError,
    Transformer,
    parse_request,
    parse_request_json,
)
from featurespeed.spec_files import load_spec
from featurespeed_workers.architectures import build

MLP = {"family": "mlp", "input_dim": 64, "width": 8, "depth": 4, "output_dim": 10}
RESNET = {**MLP, "family": "resnet"}
LANGUAGE = {"family": "transformer", "layers": 2, "width": 8, "heads": 2, "vocab_size": 10, "context_length": 5}
IMAGE = {"height": 8, "width": 8, "patch": 2}
VISION = {"family": "transformer", "layers": 2, "width": 8, "heads": 2, "image": IMAGE, "output_dim": 10}
SIDE = {"height": 8, "width": 8}
CONVNET = {
    "family": "convnet",
    "image": SIDE,
    "width": 4,
    "layers": 2,
    "stages": 2,
    "output_dim": 10,
}
GROUPED = {**CONVNET, "layers": 1, "stages": 1, "norm": "groupnorm", "groups": 2}
NINE, ANGLE = {"coefficient": 9.0}, {"target_angle": 1}
SPEC = {"kind": "recommend", "architecture": MLP, "data": {"kind": "digits"}, "loss": "cross_entropy"}
MEASURE = {"kind": "measure"}
GAUSSIAN = {"kind": "gaussian"}
CHECKPOINT = {"sha256": "0" * 64}
NONE = {"input": 0.0, "hidden": 0.0, "output": 0.0}


def spec(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SPEC), **changes}


def without(document: dict[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != field}


def faults(document: Any) -> list[FieldError]:
    with pytest.raises(SpecError) as caught:
        parse_request(document)
    return caught.value.errors


BAD: list[tuple[dict[str, Any], str, Any, str]] = [
    # counts
    ({"architecture": {**MLP, "width": 0}}, "architecture.width", 0, "greater than or equal to 1"),
    ({"architecture": {**MLP, "width": 65_537}}, "architecture.width", 65_537, "less than or equal to 65536"),
    ({"architecture": {**MLP, "width": 10**30}}, "architecture.width", 10**30, "less than or equal to 65536"),
    ({"architecture": {**MLP, "depth": 1}}, "architecture.depth", 1, "greater than or equal to 2"),
    ({"architecture": {**MLP, "depth": 5000}}, "architecture.depth", 5000, "less than or equal to 4096"),
    ({"architecture": {**MLP, "input_dim": -3}}, "architecture.input_dim", -3, "greater than or equal to 1"),
    ({"data": {"kind": "digits", "batch_size": 0}}, "data.batch_size", 0, "greater than or equal to 1"),
    ({"data": {"kind": "digits", "batch_size": 1798}}, "data.batch_size", 1798, "less than or equal to 1797"),
    ({"measurement": {"seeds": []}}, "measurement.seeds", [], "at least 1 item"),
    ({"measurement": {"seeds": [0, -1]}}, "measurement.seeds.1", -1, "greater than or equal to 0"),
    ({"measurement": {"seeds": [4, 4]}}, "measurement.seeds", [4, 4], "names a seed twice"),
    ({"measurement": {"steps": -1}}, "measurement.steps", -1, "greater than or equal to 0"),
    # types
    ({"architecture": {**MLP, "width": True}}, "architecture.width", True, "a valid integer"),
    ({"architecture": {**MLP, "width": "8"}}, "architecture.width", "8", "a valid integer"),
    ({"architecture": {**MLP, "width": 8.5}}, "architecture.width", 8.5, "a valid integer"),
    ({"architecture": {**MLP, "width": None}}, "architecture.width", None, "a valid integer"),
    ({"architecture": {**MLP, "bias": 1}}, "architecture.bias", 1, "a valid boolean"),
    ({"architecture": 3}, "architecture", 3, "an object"),
    ({"scaling": {"feature_step": True}}, "scaling.feature_step", True, "a valid number"),
    ({"scaling": {"feature_step": float("inf")}}, "scaling.feature_step", float("inf"), "a finite number"),
    ({**MEASURE, "learning_rates": True}, "learning_rates", True, "'balanced' or a valid number or an object"),
    ({**MEASURE, "learning_rates": {"input": True}}, "learning_rates.input", True, "a valid number"),
    # choices
    ({"kind": "transfer"}, "kind", "transfer", "'measure' or 'recommend'"),
    ({"loss": "mae"}, "loss", "mae", "'mse' or 'cross_entropy'"),
    ({"architecture": {**MLP, "family": "cnn"}}, "architecture.family", "cnn", "'mlp', 'resnet', 'transformer'"),
    ({"architecture": without(MLP, "family")}, "architecture.family", None, "Field required"),
    ({"architecture": {**MLP, "activation": "selu"}}, "architecture.activation", "selu", "'relu', 'gelu'"),
    ({"data": {"kind": "mnist"}}, "data.kind", "mnist", "'gaussian', 'sphere'"),
    ({"optimizer": {"name": "lion"}}, "optimizer.name", "lion", "'sgd', 'adam', 'adamw'"),
    ({"measurement": {"dtype": "float16"}}, "measurement.dtype", "float16", "'float32'"),
    # unknown and missing fields
    ({"learning_rate": 1.0}, "learning_rate", 1.0, "Extra inputs are not permitted"),
    ({"architecture": {**MLP, "widht": 8}}, "architecture.widht", 8, "Extra inputs are not permitted"),
    ({"optimizer": {"name": "adamw", "lr": 1}}, "optimizer.lr", 1, "Extra inputs are not permitted"),
    ({"architecture": without(MLP, "width")}, "architecture.width", None, "Field required"),
    ({"data": {"kind": "dataset"}}, "data.sha256", None, "Field required"),
    ({"data": {"kind": "dataset", "sha256": "abc"}}, "data.sha256", "abc", "[0-9a-f]{64}"),
    # architectures
    ({"architecture": {**LANGUAGE, "heads": 3}}, "architecture.heads", 3, "does not divide width 8"),
    ({"architecture": {**VISION, "image": {**IMAGE, "patch": 3}}}, "architecture.image.patch", 3, "does not divide"),
    ({"architecture": {**VISION, "vocab_size": 5}}, "architecture.image", IMAGE, "excludes vocab_size"),
    ({"architecture": without(VISION, "output_dim")}, "architecture.output_dim", None, "required with image"),
    ({"architecture": without(LANGUAGE, "vocab_size")}, "architecture.vocab_size", None, "are required"),
    ({"architecture": {**CONVNET, "layers": 3}}, "architecture.layers", 3, "divided evenly over stages 2"),
    ({"architecture": {**CONVNET, "kernel": 2}}, "architecture.kernel", 2, "must be odd"),
    ({"architecture": {**CONVNET, "layers": 5, "stages": 5}}, "architecture.image.height", 8, "at least 16 pixels"),
    ({"architecture": {**CONVNET, "groups": 2}}, "architecture.groups", 2, "only norm 'groupnorm' has groups"),
    ({"architecture": {**CONVNET, "norm": "groupnorm"}}, "architecture.groups", None, "required with norm 'groupnorm'"),
    ({"architecture": {**GROUPED, "groups": 3}}, "architecture.groups", 3, "does not divide width 4"),
    (
        {"architecture": {**GROUPED, "image": {"height": 1, "width": 1}, "groups": 4, "stages": 1}},
        "architecture.groups",
        4,
        "one channel at 1 × 1 pixels",
    ),
    (
        {"architecture": {**CONVNET, "branch_scale": {"coefficient": 9.0}}},
        "architecture.branch_scale",
        {"coefficient": 9.0},
        "outside",
    ),
    (
        {"architecture": {**CONVNET, "branch_scale": {"target_angle": 1}}},
        "architecture.branch_scale.target_angle",
        1,
        "Extra",
    ),
    ({"architecture": {**CONVNET, "image": {**IMAGE, "width": 4}}}, "architecture.image.patch", 2, "Extra inputs"),
    ({"architecture": {**CONVNET, "image": {**SIDE, "width": 4}}}, "architecture.image", None, "digits are 8 × 8"),
    ({"architecture": CONVNET, "optimizer": {"name": "muon"}}, "optimizer.name", "muon", "use 'adamw'"),
    ({"architecture": CONVNET, "scaling": {"rule": "mup"}}, "scaling.rule", "mup", "not known for family 'convnet'"),
    (
        {"architecture": {**CONVNET, "norm": "batchnorm"}, "data": {"kind": "digits", "batch_size": 1}},
        "data.batch_size",
        1,
        "at least 2 examples",
    ),
    ({"architecture": {**RESNET, "branch_scale": 1.5}}, "architecture.branch_scale", 1.5, "less than or equal to 1"),
    ({"architecture": {**RESNET, "branch_scale": -0.1}}, "architecture.branch_scale", -0.1, "or equal to 0"),
    ({"architecture": {**RESNET, "branch_scale": True}}, "architecture.branch_scale", True, "number or an object"),
    (
        {"architecture": {**RESNET, "branch_scale": {"coefficient": 3.0, "depth_exponent": 0.0}}},
        "architecture.branch_scale",
        {"coefficient": 3.0, "depth_exponent": 0.0},
        "3 at depth 4 is outside [0, 1]",
    ),
    (
        {"architecture": {**RESNET, "branch_scale": {"coeficient": 1.0}}},
        "architecture.branch_scale.coeficient",
        1.0,
        "Extra inputs",
    ),
    (
        {"architecture": {**RESNET, "branch_scale": {"target_angle": 1.6}}},
        "architecture.branch_scale.target_angle",
        1.6,
        "less than 1.57",
    ),
    (
        {"architecture": {**RESNET, "branch_scale": {"target_angle": 0}}},
        "architecture.branch_scale.target_angle",
        0,
        "greater than 0",
    ),
    (
        {"architecture": {**RESNET, "branch_scale": {"target_angle": 0.7, "coefficient": 1.0}}},
        "architecture.branch_scale.coefficient",
        1.0,
        "Extra inputs",
    ),
    (
        {"architecture": {**RESNET, "depth": 2, "branch_scale": {"target_angle": 0.7}}},
        "architecture.branch_scale",
        {"target_angle": 0.7},
        "depth ≥ 3",
    ),
    # checkpoints
    ({"checkpoint": {"sha256": "abc"}}, "checkpoint.sha256", "abc", "[0-9a-f]{64}"),
    ({**MEASURE, "checkpoint": CHECKPOINT}, "checkpoint", CHECKPOINT, "only kind 'recommend' takes it"),
    *(
        (
            {"checkpoint": CHECKPOINT, "optimizer": {"name": "sgd"}, section: {field: value}},
            f"{section}.{field}",
            value,
            why,
        )
        for why in ["does not go with checkpoint"]
        for section, field, value in (
            ("scaling", "rule", "pytorch_default"),
            ("scaling", "relative_sensitivity", 0.5),
            ("scaling", "refine", {"steps": 10}),
            ("scaling", "zero_output", True),
            ("measurement", "steps", 10),
            ("measurement", "kernel_probes", 4),
        )
    ),
    (
        {"checkpoint": CHECKPOINT, "architecture": {**RESNET, "branch_scale": {"target_angle": 0.7}}},
        "architecture.branch_scale.target_angle",
        0.7,
        "does not go with checkpoint",
    ),
    # optimizers
    ({"optimizer": {"name": "sgd", "nesterov": True}}, "optimizer.nesterov", True, "needs momentum > 0"),
    ({"optimizer": {"name": "sgd", "momentum": 1.0}}, "optimizer.momentum", 1.0, "less than 1"),
    ({"optimizer": {"name": "adam", "betas": [0.9, 1.0]}}, "optimizer.betas.1", 1.0, "less than 1"),
    ({"optimizer": {"name": "signsgd", "nesterov": True}}, "optimizer.nesterov", True, "Extra inputs"),
    ({"optimizer": {"name": "muon", "ns_steps": 100}}, "optimizer.ns_steps", 100, "less than or equal to 99"),
    ({"optimizer": {"name": "muon", "adjust_lr_fn": "rms"}}, "optimizer.adjust_lr_fn", "rms", "'original' or 'match"),
    ({"optimizer": {"name": "muon", "adamw": {"lr": 1}}}, "optimizer.adamw.lr", 1, "Extra inputs are not permitted"),
    (
        {"architecture": {**MLP, "depth": 2}, "optimizer": {"name": "muon"}},
        "optimizer.name",
        "muon",
        "depth 2 has none",
    ),
    # parts that do not agree
    ({"architecture": {**MLP, "input_dim": 32}}, "architecture.input_dim", 32, "digits have 64 coordinates"),
    ({"architecture": {**MLP, "output_dim": 3}}, "architecture.output_dim", 3, "digits have 10 classes"),
    ({"architecture": {**VISION, "image": {**IMAGE, "width": 4}}}, "architecture.image", None, "digits are 8 × 8 × 1"),
    ({"architecture": LANGUAGE}, "data.kind", "digits", "has no tokens"),
    ({"data": {"kind": "tokens"}}, "data.kind", "tokens", "needs a network of tokens"),
    ({"architecture": LANGUAGE, "data": {"kind": "tokens"}, "loss": "mse"}, "loss", "mse", "use 'cross_entropy'"),
    ({"data": {**GAUSSIAN, "targets": "ones"}}, "data.targets", "ones", "cross_entropy takes 'classes' or 'teacher'"),
    ({"data": {**GAUSSIAN, "targets": "classes"}, "loss": "mse"}, "data.targets", "classes", "mse takes 'gaussian'"),
    ({"scaling": {"rule": "ntk"}}, "scaling.rule", "ntk", "optimizer 'sgd' only"),
    ({**MEASURE, "architecture": RESNET, "scaling": {"rule": "ntk"}}, "scaling.rule", "ntk", "family 'mlp' only"),
    ({"scaling": {"base_width": 64}}, "scaling.base_width", 64, "only rule 'mup' takes it, not 'fsc'"),
    ({"scaling": {"rule": "mup", "base_width": 0}}, "scaling.base_width", 0, "greater than or equal to 1"),
    ({"scaling": {"rule": "mup"}, "optimizer": {"name": "muon"}}, "scaling.rule", "mup", "not for 'muon'"),
    ({"frozen": ["hidden_9"]}, "frozen", ["hidden_9"], "unknown block 'hidden_9'; blocks are input, hidden_2"),
    ({"frozen": ["input", "hidden", "output"]}, "frozen", None, "at least one must train"),
    ({"initialization": {"input": 1.0}}, "initialization", {"input": 1.0}, "only kind 'measure'"),
    ({"learning_rates": 0.1}, "learning_rates", 0.1, "only kind 'measure'"),
    ({**MEASURE, "initialization": {"inputs": 1.0}}, "initialization", {"inputs": 1.0}, "unknown block 'inputs'"),
    ({**MEASURE, "initialization": {"input": -1.0}}, "initialization.input", -1.0, "greater than or equal to 0"),
    ({**MEASURE, "learning_rates": {"input": 1.0}}, "learning_rates", {"input": 1.0}, "no rate for block 'hidden_2'"),
    ({**MEASURE, "learning_rates": -1.0}, "learning_rates", -1.0, "greater than or equal to 0"),
    # weights of the contributions
    ({"scaling": {"contributions": {}}}, "scaling.contributions", {}, "at least 1 item"),
    ({"scaling": {"contributions": {"input": -1.0}}}, "scaling.contributions.input", -1.0, "or equal to 0"),
    ({"scaling": {"contributions": {"output": 2e6}}}, "scaling.contributions.output", 2e6, "or equal to 1000000"),
    ({"scaling": {"contributions": {"head": 1.0}}}, "scaling.contributions.head", "head", "'input', 'hidden' or"),
    ({"scaling": {"contributions": NONE}}, "scaling.contributions", NONE, "one must be positive"),
    (
        {"scaling": {"contributions": {"hidden": 0.0}}, "frozen": ["input", "output"]},
        "scaling.contributions",
        {"hidden": 0.0},
        "one must be positive",
    ),
    (
        {"scaling": {"rule": "pytorch_default", "contributions": {"input": 2.0}}},
        "scaling.contributions",
        {"input": 2.0},
        "rule 'pytorch_default' has rates of its own",
    ),
    (
        {**MEASURE, "learning_rates": 0.1, "scaling": {"contributions": {"input": 2.0}}},
        "scaling.contributions",
        {"input": 2.0},
        "needs learning_rates 'balanced'",
    ),
    ({"scaling": {"granularity": "layer"}}, "scaling.granularity", "layer", "'block', 'tensor' or 'group'"),
    (
        {"scaling": {"rule": "pytorch_default", "granularity": "group"}},
        "scaling.granularity",
        "group",
        "rule 'pytorch_default' has rates of its own",
    ),
    (
        {**MEASURE, "learning_rates": 0.1, "scaling": {"granularity": "tensor"}},
        "scaling.granularity",
        "tensor",
        "needs learning_rates 'balanced'",
    ),
]


@pytest.mark.parametrize(("changes", "field", "value", "bound"), BAD, ids=[f"{b[1]}={b[2]}"[:60] for b in BAD])
def test_bad_input_names_field_value_and_bound(changes: dict[str, Any], field: str, value: Any, bound: str) -> None:
    [error] = faults(spec(**changes))
    assert error.field == field
    assert bound in error.bound
    if field not in ("architecture.image", "frozen"):
        assert error.value == value
        assert type(error.value) is type(value)


def test_every_fault_is_listed() -> None:
    found = faults(spec(architecture={**MLP, "width": 0, "depth": 1}, loss="mae"))
    assert [error.field for error in found] == ["architecture.width", "architecture.depth", "loss"]
    assert [error.field for error in faults({})] == ["kind", "architecture", "data", "loss"]


@pytest.mark.parametrize("document", [None, [], "text", 3])
def test_a_document_that_is_no_object(document: Any) -> None:
    [error] = faults(document)
    assert (error.field, error.bound) == ("body", "Input should be an object")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"a":' * 5000, b'{"kind": recommend}'])
def test_text_that_is_no_json(text: bytes) -> None:
    with pytest.raises(SpecError, match="body: Invalid JSON"):
        parse_request_json(text)


@pytest.mark.parametrize(
    ("text", "field", "bound"),
    [
        (b'{"kind": "measure", "k\\u0069nd": "measure"}', "body", "a key is given twice"),
        (b'{"architecture": {"width": 1, "width": 2}}', "body", "a key is given twice"),
        (b'{"frozen": ["input", "\\ud800"]}', "frozen.1", "half a surrogate pair"),
        (b'{"unknown": [%s]}' % b",".join([b"0"] * 40_000), "body", "at most 33,000 values"),
        (json.dumps({f"key {i}": 0 for i in range(5000)}).encode(), "body", "at most 4,099 keys"),
    ],
)
def test_json_that_readers_would_take_differently_or_choke_on(text: bytes, field: str, bound: str) -> None:
    for given in (text, text.decode()):
        with pytest.raises(SpecError) as caught:
            parse_request_json(given)
        [error] = caught.value.errors
        assert (error.field, bound in error.bound) == (field, True)


def test_names_of_fields_are_bounded_as_is_the_memory_that_they_take() -> None:
    tracemalloc.start()
    try:
        [error] = faults(spec(**{"." * 20_000: 1}))
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
    assert len(error.field) < 100
    (error,) = faults(spec(frozen=["x" * 10_000]))
    assert (error.field, "at most 64 characters" in error.bound) == ("frozen.0", True)


def test_how_many_more_faults_there_are_is_told() -> None:
    with pytest.raises(SpecError, match=r"; and 980 more$"):
        parse_request(spec(**{f"unknown_{i}": 0 for i in range(1000)}))


def test_an_error_is_one_short_line() -> None:
    with pytest.raises(SpecError) as caught:
        parse_request(spec(architecture={**MLP, "width": "x" * 10_000}))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 200
    assert message.startswith("architecture.width: Input should be a valid integer (got ")


def test_requests_survive_json_and_the_digest_is_of_the_question() -> None:
    request = parse_request(spec())
    assert parse_request_json(request.model_dump_json()) == request
    explicit = spec(optimizer={"name": "adamw", "betas": [0.9, 0.999]}, frozen=[])
    assert parse_request(explicit).sha256 == request.sha256
    assert parse_request(spec(loss="mse")).sha256 != request.sha256


def test_the_rule_depends_on_the_kind_unless_given() -> None:
    assert parse_request(spec()).rule == "fsc"
    assert parse_request(spec(kind="measure")).rule == "pytorch_default"
    assert parse_request(spec(kind="measure", scaling={"rule": "fsc"})).rule == "fsc"


def test_blocks_are_counted_as_the_paper_counts() -> None:
    assert Mlp.model_validate({**MLP, "depth": 2}).block_names == ["input", "output"]
    transformer = Transformer.model_validate(LANGUAGE)
    assert transformer.depth == 4
    assert transformer.block_names == ["input", "hidden_2", "hidden_3", "output"]
    assert "depth" not in transformer.model_dump()
    assert (transformer.is_causal, Transformer.model_validate(VISION).is_causal) == (True, False)


def test_branch_scale_is_a_number_or_a_power_of_the_depth() -> None:
    def beta(scale: Any) -> float:
        request = parse_request(spec(architecture={**RESNET, "depth": 16, "branch_scale": scale}))
        assert request.architecture.family == "resnet"
        return request.architecture.beta

    assert beta(0.3) == 0.3
    assert beta(1) == 1
    assert beta({"coefficient": 2.0, "depth_exponent": -0.5}) == pytest.approx(0.5)
    assert beta({}) == pytest.approx(0.25)


def test_a_target_angle_has_no_beta_before_it_is_measured() -> None:
    request = parse_request(spec(architecture={**RESNET, "branch_scale": {"target_angle": 0.7}}))
    assert isinstance(request.architecture, ResNet)
    assert parse_request_json(request.model_dump_json()) == request
    with pytest.raises(ValueError, match=r"branch_scale: β for the angle 0\.7 is found by measuring"):
        _ = request.architecture.beta
    with pytest.raises(ValueError, match="branch_scale: β for the angle"):
        build(request.architecture, seed=0)
    assert request.architecture.with_beta(0.25).beta == 0.25
    with pytest.raises(ValueError, match="less than or equal to 1"):
        request.architecture.with_beta(1.5)


EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid_and_begin_with_comments(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    for made in ("characters", "training"):
        (tmp_path / f"{made}.safetensors").write_bytes(b"")
    copied = tmp_path / path.name
    copied.write_text(text)
    request = parse_request(load_spec(copied).document)
    assert isinstance(request, JobRequest)
    uncommented = [
        line for line in text.splitlines() if line.strip() and "#" not in line and not line.rstrip().endswith(":")
    ]
    explained_above = {"input_dim", "output_dim", "height", "width", "channels", "coefficient", "depth_exponent"}
    names = {line.split(":")[0].strip() for line in uncommented}
    assert names <= explained_above | {"activation", "family", "shortcut", "momentum", "betas"}, names


def test_values_are_plain_json() -> None:
    for error in faults(spec(architecture={**MLP, "width": [1, {"a": None}]})):
        assert json.loads(error.model_dump_json())["value"] == [1, {"a": None}]


def test_many_faults_are_told_at_once_and_few() -> None:
    """The work is linear in the number of faults: comparing every field with every other took a minute for these."""
    document = {**SPEC, **{f"unknown_{i}": "x" * 1000 for i in range(4_000)}}
    with pytest.raises(SpecError) as caught:
        parse_request(document)
    assert len(caught.value.errors) == 20
    assert all(len(str(fault.value)) < 600 for fault in caught.value.errors)


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        ({"optimizer": {"name": "muon"}, "frozen": ["hidden"]}, "optimizer.name", "all are frozen; use 'adamw'"),
        ({"scaling": {"rule": "mup", "feature_step": 3.0}}, "scaling.feature_step", "rule 'mup' has rates of its own"),
    ],
)
def test_nothing_that_is_asked_is_ignored(changes: dict[str, Any], field: str, why: str) -> None:
    mlp = {"family": "mlp", "input_dim": 64, "width": 8, "depth": 4, "output_dim": 10}
    spec = {"kind": "recommend", "architecture": mlp, "data": {"kind": "digits"}, "loss": "cross_entropy"}
    parse_request(spec)
    with pytest.raises(SpecError) as caught:
        parse_request({**spec, **changes})
    [error] = caught.value.errors
    assert error.field == field
    assert why in error.bound
