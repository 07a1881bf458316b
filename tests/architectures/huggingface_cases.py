"""Small specifications of every model type of transformers, without dropout."""

from __future__ import annotations

from typing import Any

from featurespeed.contract import parse_request

TEXT = {"vocab_size": 11, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CASES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "config": {"vocab_size": 11, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3, "resid_pdrop": 0.0,
                   "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "context_length": 7,
    },
    "llama": {
        "model_type": "llama",
        "config": {**TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16},
        "context_length": 7,
    },
    "qwen2": {
        "model_type": "qwen2",
        "config": {**TEXT, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16},
        "context_length": 7,
    },
    "bert": {
        "model_type": "bert",
        "config": {**TEXT, **NO_DROPOUT, "num_attention_heads": 3, "max_position_embeddings": 16},
        "context_length": 7,
    },
    "bert classifier": {
        "model_type": "bert",
        "config": {**TEXT, **NO_DROPOUT, "num_attention_heads": 3, "max_position_embeddings": 16, "num_labels": 3},
        "context_length": 7,
        "task": "sequence_classification",
    },
    "vit": {
        "model_type": "vit",
        "config": {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3,
                   "image_size": 8, "patch_size": 4, "num_channels": 2, "num_labels": 4},
    },
    "convnext": {
        "model_type": "convnext",
        "config": {"num_channels": 2, "patch_size": 2, "hidden_sizes": [6, 8], "depths": [2, 2], "num_stages": 2,
                   "image_size": 16, "num_labels": 4},
    },
    "resnet": {
        "model_type": "resnet",
        "config": {"num_channels": 2, "embedding_size": 6, "hidden_sizes": [8, 12], "depths": [2, 2], "num_labels": 4},
        "image_size": 32,
    },
    "resnet basic": {
        "model_type": "resnet",
        "config": {"num_channels": 2, "embedding_size": 6, "hidden_sizes": [6, 8], "depths": [2, 2], "num_labels": 4,
                   "layer_type": "basic"},
        "image_size": 16,
    },
}  # fmt: skip


def spec(name: str, kind: str = "measure", **changes: Any) -> dict[str, Any]:
    """A request about the case of this name; entries of ``config`` in ``changes`` are put into that of the case."""
    architecture = {"family": "huggingface", **CASES[name]}
    architecture["config"] = {**architecture["config"], **changes.pop("config", {})}
    data = {"kind": "tokens" if "vocab_size" in architecture["config"] else "gaussian", "batch_size": 8}
    given = {"kind": kind, "architecture": architecture, "data": data, "loss": "cross_entropy"}
    return {**given, "optimizer": {"name": "adamw"}, "measurement": {"dtype": "float64", "seeds": [0]}, **changes}


def architecture(name: str, **config: Any) -> Any:
    """The architecture of a case, with other fields of its configuration."""
    return parse_request(spec(name, config=config)).architecture
