"""Requests that mean harm, as bytes on the wire: each is to be refused."""

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from tests.service.specs import spec

MIB = 2**20
PUT_DATASET = "/v1/datasets/{}"
NAMES = ["input", *(f"hidden_{i}" for i in range(2, 4096)), "output"]
DEEP = {"family": "mlp", "input_dim": 8, "width": 16, "depth": 4096, "output_dim": 2}
TRANSFORMER = {"family": "transformer", "layers": 2, "width": 16, "heads": 2}


@dataclass(frozen=True)
class Case:
    name: str
    wire: bytes | Iterable[bytes]
    """What is sent; pieces may have no end."""


def http(method, target, body=b"", *headers, host=b"localhost", length=True):
    """One request."""
    target = target if isinstance(target, bytes) else target.encode()
    lines = [method.encode() + b" " + target + b" HTTP/1.1", b"Host: " + host, *headers]
    if length and body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body


def post(body, *headers, **options):
    return http("POST", "/v1/jobs", body, *headers, **options)


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
    for count in (4_000, 12_900, 100_000):
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


def queries():
    """Requests without a body."""
    job = "job_" + "0" * 24
    ids = [f"{job}0", job.upper(), f"{job}%00", f"{job}%0a", "%00", "%ff%fe", "%ED%A0%80", "..%2f..", "x" * 10_000]
    ids += ["%f0%9f%98%80", "'%20OR%201=1--", "{job_id}", "%25s%25n", job]
    for name in ids:
        for method, after in [("GET", ""), ("GET", "/result"), ("GET", "/events"), ("POST", ":cancel")]:
            yield f"{method} {name[:30]}{after}", http(method, f"/v1/jobs/{name}{after}")
        yield f"retry {name[:30]}", http("POST", f"/v1/jobs/{name}:retry")
        yield f"delete {name[:30]}", http("DELETE", f"/v1/jobs/{name}")
    for place in ([1, "\0"], [2**63, job], [-1, job], [10**300, job], [1, [job]], [1.5, job], [1], [True, job], {}, 1):
        text = base64.urlsafe_b64encode(json.dumps(place).encode()).decode()
        yield f"cursor {str(place)[:20]}", http("GET", f"/v1/jobs?cursor={text}")
    for query in (
        "cursor=%00",
        "cursor=%ff",
        "cursor=" + "x" * 60_000,
        "cursor=" + "W1tb" * 100,
        "status=%00",
        "kind=%00",
    ):
        yield query[:20], http("GET", f"/v1/jobs?{query}")
    for limit in ("0", "201", "-1", "1e9", "9" * 5000, "NaN", "", "%00", "1%00", "0x10"):
        yield f"limit={limit[:9]}", http("GET", f"/v1/jobs?limit={limit}")
    paths = (
        "/..",
        "/v1/../../etc/passwd",
        "//v1/jobs",
        "/v1/jobs/",
        "/%2e%2e/",
        "/v1/jobs%00",
        "/v1/datasets/../jobs/x",
    )
    for path in (*paths, "http://elsewhere/v1/nothing", "/" + "a/" * 20_000):
        yield f"path {path[:20]}", http("GET", path)
    for number in ("-1", "9" * 5000, "x", "1e3"):
        yield f"event {number[:5]}", http("GET", f"/v1/jobs/{job}/events", b"", b"Last-Event-ID: " + number.encode())
    for content in (
        b"no tensors",
        b"\xff" * 8,
        (2**62).to_bytes(8, "little"),
        (9).to_bytes(8, "little") + b'{"a":1,"a',
    ):
        digest = hashlib.sha256(content).hexdigest()
        yield f"dataset {content[:9]!r}", http("PUT", PUT_DATASET.format(digest), content)
    deep = b'{"a":' * 10_000
    content = len(deep).to_bytes(8, "little") + deep
    yield "dataset deep", http("PUT", PUT_DATASET.format(hashlib.sha256(content).hexdigest()), content)
    for name in ("0" * 63, "0" * 64 + "%0a", "%00" * 64, "A" * 64, "0" * 64):
        yield f"dataset {name[-9:]}", http("PUT", PUT_DATASET.format(name), b"x")


def heads():
    """Requests whose head is the trouble, or the form of the body."""
    good = json.dumps(spec()).encode()
    for key in (b"", b"x" * 256, b"x" * 60_000, b"a\x00b", b"a\x01b", b"caf\xc3\xa9", b"a\tb"):
        yield f"key {key[:9]!r}", post(good, b"Idempotency-Key: " + key)
    large = {
        "one": [b"X: " + b"x" * 100_000],
        "name": [b"x" * 100_000 + b": 1"],
        "many": [b"X-%d: 1" % i for i in range(9000)],
    }
    large["wide"] = [b"X-%d: %s" % (i, b"x" * 500) for i in range(1000)]
    for name, headers in large.items():
        yield f"headers {name}", post(good, *headers)
    yield "url", http("GET", "/" + "x" * 100_000)
    yield "query", http("GET", "/v1/jobs?" + "status=x&" * 20_000)
    for header in (
        b"X: a\x00b",
        b"X : 1",
        b" folded",
        b"X\x00: 1",
        b"no colon",
        b"Content-Length: 1\r\nContent-Length: 2",
    ):
        yield f"header {header[:12]!r}", http("POST", "/v1/jobs", b"", header)
    for length in (b"-1", b"1e3", b"9" * 30, b"0x10", b"1, 2"):
        yield f"length {length[:9]!r}", http("POST", "/v1/jobs", b"", b"Content-Length: " + length)
    chunked = b"Transfer-Encoding: chunked"
    yield "length and chunks", post(good, chunked)
    for body in (b"zz\r\n", b"-1\r\n", b"f" * 30 + b"\r\n", b"1\r\nab\r\n", b"1;" + b"x" * MIB):
        yield f"chunk {body[:9]!r}", post(body, chunked, length=False)
    yield "coding", post(good, b"Transfer-Encoding: gzip")
    for line in (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        yield f"line {line[:9]!r}", line
    for line in (
        b"BREW / HTTP/1.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\0" * 100,
        b"\r\n" * 70_000,
    ):
        yield f"line {line[:9]!r}", line
    for host in (b"[", b"evil.example", b"a" * 60_000, b"\xff", b"localhost:x"):
        yield f"host {host[:9]!r}", http("GET", "/v2", host=host)
    yield "upgrade", post(b"{}", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13")
    for coding, body in {"gzip": gzip.compress(b" " * 100 * MIB), "deflate": zlib.compress(b" " * 100 * MIB)}.items():
        yield f"bomb {coding}", post(body, b"Content-Encoding: " + coding.encode())


def endless(first, piece):
    yield first
    while True:
        yield piece


FLOOD = Case("requests without waiting for answers", endless(b"", http("GET", "/v2") * 100))
"""Ended without a word, as an answer could be taken for that of a request which was begun."""


def bodies():
    """Bodies that are too long, some without an end."""
    chunked = b"Transfer-Encoding: chunked"
    yield "one byte too many", post(b" " * (MIB + 1))
    yield "4 MiB", post(b" " * (4 * MIB))
    yield "4 MiB in chunks", post((b"10000\r\n" + b" " * 65_536 + b"\r\n") * 64 + b"0\r\n\r\n", chunked, length=False)
    yield "chunks of a byte", post(b"1\r\n \r\n" * 300_000 + b"0\r\n\r\n", chunked, length=False)

    piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    yield "endless", endless(post(b"", chunked, length=False), piece)
    yield "endless length", endless(post(b"", b"Content-Length: 1000000000000"), b" " * 65_536)
    yield "endless after 404", endless(http("POST", "/v2", b"", chunked, length=False), piece)
    yield "endless header", endless(b"GET / HTTP/1.1\r\nX: ", b"x" * 65_536)
    yield "endless headers", endless(b"GET / HTTP/1.1\r\n", b"X: 1\r\n" * 10_000)
    yield "endless url", endless(b"GET /", b"x" * 65_536)
    yield "endless trailers", endless(post(b"2\r\n{}\r\n0\r\n", chunked, length=False), b"X: 1\r\n" * 10_000)


def cases():
    """All of them."""
    for name, body in specs():
        yield Case(name, post(body))
    for requests in (queries, heads, bodies):
        for name, wire in requests():
            yield Case(name, wire)
