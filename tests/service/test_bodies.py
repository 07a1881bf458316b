"""How long a request's body is waited for, and by whom."""

import socket

import pytest

from featurespeed_service.store.keys import Grant
from tests.service.conftest import Api


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    with Api(tmp_path_factory.mktemp("bodies"), require_keys=True, body_seconds=0.5, max_dataset_bytes=1000) as api:
        yield api


def half_a_request(api, line, *headers):
    """What the service says, up to its end of the connection, to a request whose body never comes whole."""
    url = api.http.base_url
    head = [f"{line} HTTP/1.1", f"Host: {url.host}", "Content-Length: 100", *headers, "", "{"]
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        connection.sendall("\r\n".join(head).encode())
        pieces = []
        while b'"status"' not in b"".join(pieces) and (piece := connection.recv(65536)):
            pieces.append(piece)
        return b"".join(pieces).decode()


@pytest.mark.parametrize("line", ["POST /v1/jobs", "PUT /v1/datasets/" + "0" * 64])
def test_a_body_that_does_not_arrive_is_given_up(impatient, line):
    _, token = impatient.store.keys.create("alice", Grant("alice"))
    said = half_a_request(impatient, line, f"Authorization: Bearer {token}")
    assert said.startswith("HTTP/1.1 408 ")
    assert "urn:featurespeed:problem:too-slow" in said
    assert "connection: close" in said.lower()
    assert impatient.http.get("/livez").status_code == 200


@pytest.mark.parametrize("line", ["POST /v1/jobs", "PUT /v1/datasets/" + "0" * 64])
def test_without_a_key_no_body_is_waited_for(impatient, line):
    assert half_a_request(impatient, line).startswith("HTTP/1.1 401 ")
