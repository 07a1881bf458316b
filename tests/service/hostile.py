"""Requests that mean harm, as bytes on the wire: each is to be refused."""

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from tests.service.hostile_specs import MIB, specs
from tests.service.specs import spec

PUT_DATASET = "/v1/datasets/{}"


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
