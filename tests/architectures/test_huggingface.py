"""Networks of transformers: those of the library itself, cut where tracing cuts them, and counted in closed form."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featurespeed.contract import SpecError, parse_request
from featurespeed_workers import blocks
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.architectures.layers import POSITION_STD
from featurespeed_workers.passes import rms_by_name
from tests.architectures.huggingface_cases import CASES, architecture, spec

transformers = pytest.importorskip("transformers")

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in CASES),
    ("gpt2", {"n_inner": 30, "activation_function": "relu", "n_layer": 1, "attn_pdrop": 0.1}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 4}),
    ("qwen2", {"num_key_value_heads": 1, "rope_parameters": {"rope_theta": 500.0}}),
    ("bert", {"type_vocab_size": 3, "pad_token_id": None}),
    ("vit", {"qkv_bias": False, "patch_size": 2}),
    ("convnext", {"layer_scale_init_value": 0.0, "drop_path_rate": 0.2}),
    ("convnext", {"depths": [1, 2, 1], "hidden_sizes": [4, 4, 6], "num_stages": 3}),
    ("resnet", {"downsample_in_first_stage": True, "downsample_in_bottleneck": True, "embedding_size": 8}),
    ("resnet", {"depths": [1, 1]}),
    ("resnet basic", {"depths": [2, 1, 1], "hidden_sizes": [6, 6, 9]}),
]


def name_of(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items())


def inputs_of(a: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    takes = a.signature
    if takes.vocab_size is not None:
        return torch.randint(1, takes.vocab_size, (3, *takes.inputs), generator=generator)
    return torch.randn(3, *takes.inputs, generator=generator)


def made_by_transformers(a: Any, **fields: Any) -> nn.Module:
    """The model as a user makes it."""
    config = transformers.AutoConfig.for_model(a.model_type, **{**a.config.model_dump(), **fields})
    tasks = {
        "causal_lm": transformers.AutoModelForCausalLM,
        "masked_lm": transformers.AutoModelForMaskedLM,
        "sequence_classification": transformers.AutoModelForSequenceClassification,
        "image_classification": transformers.AutoModelForImageClassification,
    }
    return tasks[a.task].from_config(config)


@pytest.mark.parametrize(("name", "config"), VARIANTS, ids=name_of)
def test_the_closed_form_counts_the_parameters_and_blocks_partition_them(name: str, config: dict[str, Any]) -> None:
    a = architecture(name, **config)
    network = build(a, seed=0)
    parameters = dict(network.module.named_parameters())
    assert a.parameter_count == sum(p.numel() for p in parameters.values())
    assert [block.name for block in network.blocks] == a.block_names
    assert sorted(n for block in network.blocks for n in block.parameters) == sorted(parameters)
    for block in network.blocks:
        assert block.scalables
        for scalable in block.scalables:
            network.module.get_submodule(scalable.module)
            assert set(scalable.parameters) <= set(block.parameters)
    assert a.hidden_branches == sum(s.target_rms != 1 for block in network.blocks for s in block.scalables)


@pytest.mark.parametrize(("name", "config"), VARIANTS, ids=name_of)
def test_the_cut_nodes_are_those_that_tracing_finds(name: str, config: dict[str, Any]) -> None:
    a = architecture(name, **config)
    network = build(a, seed=0)
    found = blocks(network.module, inputs_of(a))
    assert len(found) == a.depth
    owned = [
        sorted(n for n in dict(network.module.named_parameters()) if _in(n, [path, *extras], found))
        for path, extras in found.items()
    ]
    assert owned == [sorted(block.parameters) for block in network.blocks]
    if 1 not in getattr(a.config, "depths", ()):  # a stage of one layer goes by the stage's name there
        assert list(found) == [block.module for block in network.blocks]


def _in(name: str, paths: list[str], found: Any) -> bool:
    """Whether a parameter lies within one of the paths, and not within a block of its own inside of it."""
    inner = [path for path in paths if name == path or name.startswith(f"{path}.")]
    return bool(inner) and not any(
        name.startswith(f"{other}.") and len(other) > len(max(inner, key=len)) for other in found
    )


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_librarys_own_model_with_its_own_initialization(name: str) -> None:
    a = architecture(name)
    network = build(a, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        own = made_by_transformers(a)
    ours, theirs = network.module.state_dict(), own.state_dict()
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    assert network.default_rms == rms_by_name(own)
    assert network.module.training
    x = inputs_of(a)
    own.train()
    with torch.no_grad():
        torch.testing.assert_close(network.module(x)[0], own(x).logits, rtol=1e-4, atol=1e-6)


def test_dropped_weights_of_attention_leave_the_model_what_it_is() -> None:
    a = architecture("gpt2", attn_pdrop=0.3)
    network = build(a, seed=3)
    own = made_by_transformers(a)
    own.load_state_dict(network.module.state_dict())
    x = inputs_of(a)
    with torch.no_grad():
        torch.testing.assert_close(network.module.eval()(x)[0], own.eval()(x).logits, rtol=1e-4, atol=1e-6)
    assert network.module.config._attn_implementation == "eager"


def test_building_leaves_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    base_initialize(build(architecture("gpt2"), seed=0), seed=1)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", CASES)
def test_the_start_is_normal_by_fan_in_with_unit_gains_and_no_biases(name: str) -> None:
    wide = (
        {"n_embd": 120} if name == "gpt2" else {} if "hidden_sizes" in CASES[name]["config"] else {"hidden_size": 120}
    )
    network = build(architecture(name, **wide), seed=0)
    with torch.no_grad():
        for p in network.module.parameters():
            p.fill_(7.0)
    base_initialize(network, seed=3)
    modules = dict(network.module.named_modules())
    for path, p in network.module.named_parameters():
        module, what = modules[path.rpartition(".")[0]], path.rpartition(".")[2]
        if p.ndim == 1:
            assert torch.equal(p, torch.zeros_like(p) if what == "bias" else torch.ones_like(p)), path
            continue
        if isinstance(module, nn.Embedding):
            drawn = p if module.padding_idx is None else p[1:]
            assert module.padding_idx is None or not p[0].any()
            std = (
                1.0 if path.endswith(("wte.weight", "embed_tokens.weight", "word_embeddings.weight")) else POSITION_STD
            )
        elif isinstance(module, nn.Linear | nn.Conv2d):
            drawn, std = p, 1 / math.sqrt(p[0].numel())
        elif what == "weight":  # transformers' Conv1D, (in, out)
            drawn, std = p, 1 / math.sqrt(p.shape[0])
        else:
            drawn, std = p, POSITION_STD
        assert float(drawn.detach().square().mean().sqrt()) == pytest.approx(std, rel=4 / math.sqrt(drawn.numel())), (
            path
        )


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_asked_of_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a connection was opened")

    for call in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, call, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    build(architecture(name), seed=0)


def test_without_the_library_a_specification_is_refused() -> None:
    code = """
import sys
sys.modules["transformers"] = None
from featurespeed.contract import SpecError
from featurespeed_workers.architectures import build
from tests.architectures.huggingface_cases import architecture
try:
    build(architecture("gpt2"), seed=0)
except SpecError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("architecture.family: needs the library transformers")
    assert "featurespeed[huggingface]" in done.stdout


def test_validation_and_budget_load_neither_torch_nor_transformers() -> None:
    code = """
import sys
from featurespeed.budget import Budget, check_budget
from tests.architectures.huggingface_cases import CASES, spec
from featurespeed.contract import parse_request
for name in CASES:
    check_budget(parse_request(spec(name)), Budget())
print([m for m in ("torch", "transformers", "numpy") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "changes", "field", "words"),
    [
        ("gpt2", {"model_type": "t5"}, "model_type", "'gpt2', 'llama', 'qwen2', 'bert', 'vit', 'convnext', 'resnet'"),
        ("gpt2", {"model_type": None}, "model_type", "one of"),
        ("gpt2", {"config": {"n_layers": 3}}, "config.n_layers", "Extra"),
        ("gpt2", {"config": {"auto_map": {"AutoModel": "x.py"}}}, "config.auto_map", "Extra"),
        ("gpt2", {"config": {"n_layer": "3"}}, "config.n_layer", "integer"),
        ("gpt2", {"config": {"n_layer": 1025}}, "config.n_layer", "1024"),
        ("gpt2", {"config": {"attn_pdrop": 1.0}}, "config.attn_pdrop", "less than 1"),
        ("gpt2", {"config": {"activation_function": "exec"}}, "config.activation_function", "'gelu'"),
        ("gpt2", {"config": {"tie_word_embeddings": True}}, "config.tie_word_embeddings", "untie"),
        ("gpt2", {"config": {"n_head": 5}}, "config.n_head", "5 does not divide n_embd 12"),
        ("gpt2", {"context_length": 17}, "context_length", "17 is more than config.n_positions, which is 16"),
        ("gpt2", {"task": "masked_lm"}, "task", "causal_lm"),
        ("gpt2", {"image_size": 3}, "image_size", "Extra"),
        ("llama", {"config": {"num_attention_heads": 4}}, "config.num_attention_heads", "even width, not 3"),
        ("llama", {"config": {"num_key_value_heads": 3}}, "config.num_key_value_heads", "does not divide"),
        ("llama", {"config": {"rope_parameters": {"factor": 2}}}, "config.rope_parameters.factor", "Extra"),
        ("bert", {"config": {"pad_token_id": 11}}, "config.pad_token_id", "below vocab_size 11"),
        ("vit", {"config": {"patch_size": 3}}, "config.patch_size", "3 does not divide image_size 8"),
        ("convnext", {"config": {"num_stages": 3}}, "config.hidden_sizes", "num_stages is 3"),
        ("convnext", {"config": {"image_size": 3}}, "config.image_size", "less than 4"),
        ("resnet", {"config": {"depths": [1]}}, "config.depths", "hidden_sizes 2"),
        ("resnet", {"config": {"hidden_sizes": [2, 8]}}, "config.hidden_sizes", "at least 4"),
        ("resnet", {"config": {"image_size": 8}}, "config.image_size", "Extra"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_names_the_field(name: str, changes: dict[str, Any], field: str, words: str) -> None:
    document = spec(name, config=changes.get("config", {}))
    document["architecture"].update({key: value for key, value in changes.items() if key != "config"})
    with pytest.raises(SpecError) as caught:
        parse_request(document)
    [error] = caught.value.errors
    assert error.field == f"architecture.{field}"
    assert words in error.bound


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("gpt2", {"scaling": {"rule": "mup"}, "kind": "recommend"}, "scaling.rule"),
        ("gpt2", {"scaling": {"rule": "ntk"}}, "scaling.rule"),
        ("resnet", {"optimizer": {"name": "muon"}}, "optimizer.name"),
        ("resnet", {"data": {"kind": "gaussian", "batch_size": 1}}, "data.batch_size"),
        ("vit", {"data": {"kind": "digits"}}, "architecture.config.image_size"),
        ("bert", {"data": {"kind": "gaussian"}}, "data.kind"),
        ("vit", {"data": {"kind": "tokens"}}, "data.kind"),
        ("vit", {"config": {"num_labels": 1}}, "architecture.config.num_labels"),
    ],
    ids=str,
)
def test_parts_of_a_request_agree(name: str, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_request(spec(name, **changes))
    assert [error.field for error in caught.value.errors] == [field]


def test_fields_have_the_defaults_of_transformers() -> None:
    for name in CASES:
        a = architecture(name)
        own = transformers.AutoConfig.for_model(a.model_type)
        for field, model_field in type(a.config).model_fields.items():
            if field not in ("tie_word_embeddings", "rope_parameters", "head_dim", "num_key_value_heads"):
                theirs = getattr(own, field)
                assert model_field.default == (tuple(theirs) if isinstance(theirs, list) else theirs), (name, field)


def test_a_context_of_text_is_short_unless_stated() -> None:
    for positions, expected in ((1024, 128), (100, 100)):
        document = spec("gpt2", config={"n_positions": positions})
        del document["architecture"]["context_length"]
        assert parse_request(document).architecture.signature.inputs == (expected,)
