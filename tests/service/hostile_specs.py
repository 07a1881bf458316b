"""Bodies of ``POST /v1/jobs`` that mean harm: each is to be refused."""

import json

from tests.service.specs import spec

MIB = 2**20
NAMES = ["input", *(f"hidden_{i}" for i in range(2, 4096)), "output"]
DEEP = {"family": "mlp", "input_dim": 8, "width": 16, "depth": 4096, "output_dim": 2}
TRANSFORMER = {"family": "transformer", "layers": 2, "width": 16, "heads": 2}


def changed(path, text):
    """A spec as JSON, with the JSON text at a path."""
    document = spec(optimizer={"name": "sgd"}, scaling={})
    *parents, last = path.split(".")
    inner = document
    for key in parents:
        inner = inner.setdefault(key, {})
    inner[last] = "@@"
    return json.dumps(document).replace('"@@"', text).encode()


def specs():
    """(name, body) of POST /v1/jobs."""
    yield from numbers()
    yield from texts()
    yield from structures()
    yield from budgets()
    yield from graphs()


def numbers():
    whole = ["architecture.width", "architecture.depth", "architecture.input_dim", "data.batch_size", "data.seed"]
    whole += ["measurement.steps", "measurement.every", "measurement.kernel_probes"]
    for path in whole:
        for text in ("-1", "1" + "0" * 30, "1" + "0" * 5000, "1e308", "1.5", '"16"', "true", "null", "[[]]", '{"a":1}'):
            yield f"{path}={text[:9]}", changed(path, text)
    for path in ("scaling.relative_sensitivity", "measurement.master_lr", "learning_rates", "optimizer.weight_decay"):
        for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e308", "9" * 100_000):
            yield f"{path}={text[:9]}", changed(path, text)


def texts():
    closed = ["kind", "loss", "architecture.family", "data.kind", "optimizer.name", "scaling.rule", "measurement.dtype"]
    for path in closed:
        for name, text in {"long": '"%s"' % ("x" * 900_000), "nul": '"a\\u0000"', "half": '"\\ud800"'}.items():
            yield f"{path} {name}", changed(path, text)
    for text in ("\\u0000", "\\ud800", "\\udfff\\ud800", "." * 20_000, "." * 900_000, "x" * 900_000, "__proto__"):
        yield f"key {text[:9]}", changed("unknown", "0").replace(b"unknown", text.encode())
        yield f"block {text[:9]}", changed("frozen", f'["{text}"]')
        yield f"map {text[:9]}", changed("initialization", f'{{"{text}": 1}}')
    yield "sha256 nul", changed("data", '{"kind": "dataset", "sha256": "%s\\u0000"}' % ("0" * 63))
    yield "not utf-8", changed("loss", '"mse"').replace(b"mse", b"\xff\xfe")
    yield "overlong", changed("loss", '"mse"').replace(b"mse", b"\xc0\xae")
    yield "surrogate bytes", changed("loss", '"mse"').replace(b"mse", b"\xed\xa0\x80")
    yield "utf-16", json.dumps(spec()).encode("utf-16")
    yield "wide", ('{"kind": "\U0001f600%s"}' % ("x" * 900_000)).encode()
    for body in (
        b"null",
        b"[]",
        b'"x"',
        b"0",
        b"{",
        b"{}",
        b"kind=measure",
        b"\0" * MIB,
        b" " * MIB,
        b"--- !!python/x",
    ):
        yield f"no spec {body[:9]!r}", body
    yield "entities", b'<!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><x>&b;</x>'


def structures():
    for deep in ("[" * 100_000, '{"a":' * 100_000, '[{"a":' * 50_000, "[" * 100_000 + "]" * 100_000):
        yield f"deep {deep[:9]}", deep.encode()
        yield f"deep within {deep[:9]}", changed("frozen", deep)
    for twice in ('"kind": "measure", "kind": "recommend"', '"\\u006bind": "measure", "kind": "measure"'):
        yield f"twice {twice[:9]}", changed("kind", '"measure"').replace(b'"kind": "measure"', twice.encode(), 1)
    yield "twice within", changed("architecture.width", '16, "width": 32')
    yield "twice in a map", changed("initialization", '{"input": 1, "input": 2}')
    yield "twice, often", changed("frozen", ", ".join(['[], "frozen": []'] * 15_000))
    for count in (4_000, 32_900, 100_000):
        for path, item in [("measurement.seeds", "0"), ("measurement.seeds", '"a"'), ("frozen", '"x"')]:
            yield f"{count} {path} {item}", changed(path, f"[{', '.join([item] * count)}]")
        yield f"{count} keys", changed("unknown", ", ".join(["0", *(f'"k{i}": 0' for i in range(count))]))
        for path in ("initialization", "learning_rates", "scaling.contributions", "architecture"):
            yield f"{count} in {path}", changed(path, json.dumps({f"k{i}": "x" for i in range(count)}))
    yield "factors", changed("scaling.refine", json.dumps({"factors": list(range(1, 1000))}))


def budgets():
    def deep(**fields):
        return json.dumps(spec(architecture=DEEP, **fields)).encode()

    yield "wide and deep", json.dumps(spec(architecture={**DEEP, "width": 65_536})).encode()
    yield "large batch", changed("data.batch_size", "65536").replace(b'"width": 16', b'"width": 65536')
    yield "a million seeds", changed("measurement.seeds", json.dumps(list(range(10**6))))
    yield "many steps", changed("measurement.steps", "100001")
    yield "many probes", changed("measurement.kernel_probes", "1001")
    yield "long probes", changed("scaling.refine", '{"steps": 10001}')
    tokens = {"kind": "tokens", "batch_size": 65_536}
    for extra in ({"layers": 4096, "width": 65_536}, {"context_length": 10**6}, {"heads": 4096}):
        network = {**TRANSFORMER, "vocab_size": 10**6, "context_length": 1000, **extra}
        yield f"tokens {extra}", json.dumps(spec(architecture=network, data=tokens, loss="cross_entropy")).encode()
    image = {"height": 4096, "width": 4096, "channels": 64, "patch": 1}
    network = {**TRANSFORMER, "image": image, "output_dim": 10}
    yield "image", json.dumps(spec(architecture=network)).encode()
    nothing = {"contributions": {"input": 0, "hidden": 0, "output": 0}}
    yield "no weight", deep(scaling=nothing)
    yield "no weight, frozen", deep(scaling={"contributions": {"output": 0}}, frozen=NAMES[:-1])
    yield "all frozen", deep(frozen=NAMES[::-1])
    yield "no rate", deep(learning_rates=dict.fromkeys(NAMES[:-2], 0.123456789))
    yield "unknown block", deep(initialization=dict.fromkeys([*NAMES[:-1], "x"], 0.123456789))
    yield "too many blocks", deep(frozen=[*NAMES, *NAMES])


def graphs():
    """Lists of as many layers as there may be."""
    line = [{"layer": "linear", "name": f"l{i}", "width": 4} for i in range(4096)]
    twice = [{"layer": "concat", "name": f"c{i}", "inputs": [f"c{i - 1}" if i else "input"] * 4} for i in range(4096)]
    for name, layers in {
        "a cycle of thousands": [{**line[0], "input": "l4095"}, *line[1:]],
        "a layer too many": [*line, {**line[0], "name": "last"}],
        "one name": [line[0]] * 4096,
        "no kind": [{"name": "x"}] * 4096,
        "numbers without end": twice,
        "nobody takes them": [{**layer, "input": "input"} for layer in line],
    }.items():
        network = {"family": "graph", "input": {"shape": [4]}, "layers": layers}
        yield name, json.dumps(spec(architecture=network)).encode()
