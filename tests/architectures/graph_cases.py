"""Small graphs with every kind of layer, and the other families spelled out as graphs."""

from __future__ import annotations

import json
from typing import Any

from featurespeed.contract import Architecture, ConvNet, Graph, Mlp, ResNet, Transformer

IMAGE, TEXT = {"shape": [2, 6, 4]}, {"vocab_size": 7, "length": 4}


def layer(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "layer": kind, **fields}


def graph(takes: dict[str, Any], *layers: dict[str, Any], **fields: Any) -> Graph:
    return Graph.model_validate_json(json.dumps({"family": "graph", "input": takes, "layers": layers, **fields}))


HEAD = layer("linear", "head", width=3, bias=True)
CASES: dict[str, Graph] = {
    "plain chain": graph(
        {"shape": [5]},
        layer("linear", "first", width=6),
        layer("norm", "normed", norm="batchnorm"),
        layer("activation", "act", function="silu"),
        layer("norm", "again", norm="layernorm", bias=True),
        layer("linear", "second", width=4, bias=True),
        layer("norm", "rms", norm="rmsnorm"),
        layer("activation", "last", function="tanh"),
        HEAD,
    ),
    "convolutions": graph(
        IMAGE,
        layer("conv", "stem", channels=4, kernel=3, padding=0, bias=True),
        layer("norm", "group", norm="groupnorm", groups=2),
        layer("activation", "act", function="gelu"),
        layer("conv", "depthwise", channels=4, kernel=3, groups=4),
        layer("pool", "less", function="average", kernel=2, stride=1),
        layer("conv", "strided", channels=4, kernel=2, stride=2, padding=1),
        layer("norm", "batch", norm="batchnorm"),
        layer("flatten", "flat"),
        HEAD,
    ),
    "residual": graph(
        {"shape": [5]},
        layer("linear", "first", width=4),
        layer("activation", "act", function="tanh"),
        layer("linear", "inner", width=8),
        layer("linear", "outer", width=4),
        layer("residual", "sum", input="first", scale=0.5),
        layer("norm", "pre", norm="layernorm"),
        layer("linear", "left", width=2),
        layer("linear", "right", width=2, input="pre"),
        layer("concat", "both", inputs=["left", "right"]),
        layer("residual", "more", input="sum", shortcut="variance_preserving", scale=0.6),
        layer("norm", "final", norm="rmsnorm"),
        HEAD,
    ),
    "text": graph(
        TEXT,
        layer("embedding", "tokens", width=4),
        layer("position", "positions"),
        layer("norm", "pre", norm="layernorm"),
        layer("attention", "mix", heads=2, causal=True, bias=True),
        layer("residual", "stream", input="positions"),
        layer("concat", "twice", inputs=["stream", "positions"], axis="positions"),
        layer("pool", "most", function="max"),
        HEAD,
    ),
    "language": graph(
        TEXT,
        layer("embedding", "tokens", width=4),
        layer("attention", "mix", heads=1),
        layer("activation", "act", function="gelu"),
        layer("linear", "head", width=7),
    ),
    "u-net": graph(
        IMAGE,
        layer("conv", "stem", channels=2, kernel=3),
        layer("activation", "act", function="silu"),
        layer("pool", "down", function="max", kernel=2),
        layer("conv", "deep", channels=3, kernel=3),
        layer("upsample", "up"),
        layer("concat", "skip", inputs=["act", "up"]),
        layer("conv", "merge", channels=2, kernel=1),
        layer("flatten", "pixels", to="positions"),
        layer("activation", "bent", function="tanh"),
        layer("pool", "mean"),
        HEAD,
    ),
    "any order": graph(
        {"shape": [3, 4]},
        layer("linear", "head", width=2, input="mean"),
        layer("pool", "mean", input="sum"),
        layer("residual", "sum", input="first", branch="mix", scale=2.0),
        layer("attention", "mix", heads=2, input="first"),
        layer("linear", "first", width=4, input="input"),
    ),
}


class Spelling:
    """Layers one after the other, each parameter with its name in the family."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []
        self.names: dict[str, str] = {}

    def add(self, kind: str, name: str, own: str = "", **fields: Any) -> str:
        """The layer's name; ``own``: where the family has its parameters."""
        self.layers.append(layer(kind, name, **fields))
        self.names[f"{name}."] = f"{own}."
        return name

    def norm(self, a: Any, name: str, own: str, **fields: Any) -> None:
        if a.norm != "none":
            choice = {"bias": a.bias} if a.norm == "layernorm" else {}
            self.add("norm", name, own, norm=a.norm, **choice, **fields)

    def act(self, a: Any, name: str) -> None:
        self.add("activation", name, function=a.activation)


def spelled_out(a: Architecture) -> tuple[Graph, dict[str, str]]:
    """The graph of a family's network, and the family's prefix of parameter names for each prefix of the graph's."""
    s = Spelling()
    takes: dict[str, Any] = {"shape": list(a.signature.inputs)}
    fields: dict[str, Any] = {}
    if isinstance(a, Mlp):
        _mlp(a, s)
    elif isinstance(a, ResNet):
        _resnet(a, s)
    elif isinstance(a, ConvNet):
        _convnet(a, s)
    else:
        assert isinstance(a, Transformer)
        if a.image is None:
            takes = {"vocab_size": a.vocab_size, "length": a.context_length}
        fields = {"cut_nodes": _transformer(a, s)}
    return graph(takes, *s.layers, **fields), s.names


def _mlp(a: Mlp, s: Spelling) -> None:
    for name in a.block_names:
        if name != "input":
            s.act(a, f"{name}_act")
        s.add("linear", f"{name}_map", name, width=a.output_dim if name == "output" else a.width, bias=a.bias)
        if name != "output":
            s.norm(a, f"{name}_norm", f"{name}.norm")


def _resnet(a: ResNet, s: Spelling) -> None:
    stream = s.add("linear", "first", "input", width=a.width, bias=a.bias)
    for name in a.block_names[1:-1]:
        s.norm(a, f"{name}_norm", f"{name}.branch.norm")
        s.act(a, f"{name}_act")
        s.add("linear", f"{name}_map", f"{name}.branch", width=a.width, bias=a.bias)
        stream = s.add("residual", name, input=stream, scale=a.beta, shortcut=a.shortcut)
    s.norm(a, "final", "output.norm")
    s.add("linear", "head", "output", width=a.output_dim, bias=a.bias)


def _convnet(a: ConvNet, s: Spelling) -> None:
    stream = s.add("conv", "first", "input", channels=a.width, kernel=a.kernel, bias=a.bias)
    groups = {"groups": a.groups} if a.groups else {}
    for i, name in enumerate(a.block_names[1:-1]):
        stage, place = divmod(i, a.layers // a.stages)
        begins, m = stage > 0 and place == 0, a.maps[stage][0]
        branch = f"{name}.branch"
        s.norm(a, f"{name}_norm_1", f"{branch}.norm_1", **groups)
        s.act(a, f"{name}_act_1")
        strided = {"channels": m, "stride": 1 + begins, "bias": a.bias}
        s.add("conv", f"{name}_conv_1", f"{branch}.conv_1", kernel=a.kernel, **strided)
        s.norm(a, f"{name}_norm_2", f"{branch}.norm_2", **groups)
        s.act(a, f"{name}_act_2")
        end = s.add("conv", f"{name}_conv_2", f"{branch}.conv_2", channels=m, kernel=a.kernel, bias=a.bias)
        if begins:
            stream = s.add("conv", f"{name}_short", f"{name}.projection", input=stream, kernel=1, **strided)
        stream = s.add("residual", name, input=stream, branch=end, scale=a.beta, shortcut=a.shortcut)
    s.norm(a, "final", "output.norm", **groups)
    s.act(a, "final_act")
    s.add("pool", "mean")
    s.add("linear", "head", "output", width=a.output_dim, bias=a.bias)


def _transformer(a: Transformer, s: Spelling) -> list[str]:
    """Its cut nodes: by the rule each of a block's two branches would be a block of its own."""
    if a.image is None:
        s.add("embedding", "first", "input.embedding", width=a.width)
    else:
        p = a.image.patch
        s.add("conv", "first", "input.embedding", channels=a.width, kernel=p, stride=p, padding=0, bias=a.bias)
        s.add("flatten", "patches", to="positions")
    ends = [stream := s.add("position", "positions", "input.position")]
    for name in a.block_names[1:-1]:
        s.norm(a, f"{name}_norm_1", f"{name}.attention.norm")
        s.add("attention", f"{name}_mix", f"{name}.attention", heads=a.heads, causal=a.is_causal, bias=a.bias)
        stream = s.add("residual", f"{name}_mixed", input=stream)
        s.norm(a, f"{name}_norm_2", f"{name}.mlp.norm")
        s.add("linear", f"{name}_expand", f"{name}.mlp.expand", width=a.mlp_width, bias=a.bias)
        s.act(a, f"{name}_act")
        s.add("linear", f"{name}_project", f"{name}.mlp.project", width=a.width, bias=a.bias)
        ends.append(stream := s.add("residual", name, input=stream))
    s.norm(a, "final", "output.norm")
    if a.output_dim is not None:
        s.add("pool", "mean")
    return [*ends, s.add("linear", "head", "output", width=a.head_dim, bias=a.bias)]
