"""The Ray that a service starts for itself answers nobody who does not know its token."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

READ = "import sys; from ray._raylet import GcsClient; print(GcsClient(address=sys.argv[1]).internal_kv_keys(b''))"


def named(service, part):
    (found,) = [process for process in service.family() if part in process.cmdline()[0]]
    return found


def listening(process):
    """(address, port) of what a process listens at."""
    return [c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]


def read(port, **auth):
    """Whether somebody with this token may read what the cluster knows."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | auth
    command = [sys.executable, "-c", READ, f"127.0.0.1:{port}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode == 0, done.stderr


def test_the_token_is_asked_for(service):
    head = named(service, "gcs_server")
    (address,) = listening(head)
    token = head.environ()["RAY_AUTH_TOKEN"]
    assert len(bytes.fromhex(token)) == 32
    assert read(address.port, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)[0]
    for auth in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        allowed, why = read(address.port, **auth)
        assert not allowed
        assert "token" in why
        assert token not in why


def wait_for_autoscaler(service, seconds=30):
    """Until Ray's autoscaler has tried to listen for whoever reads its metrics, which it does late."""
    (arguments,) = [
        one.cmdline() for one in service.family() if any(part.endswith("/monitor.py") for part in one.cmdline())
    ]
    (logs,) = [part.partition("=")[2] for part in arguments if part.startswith("--logs-dir=")]
    end = time.monotonic() + seconds
    while "Starting autoscaler metrics server" not in (Path(logs) / "monitor.log").read_text():
        assert time.monotonic() < end, "the autoscaler did not start"
        time.sleep(0.1)
    time.sleep(0.5)


def test_no_dashboard_and_no_open_agent(service):
    """Over HTTP, at every port of every process but the API's, there is nothing without the token."""
    wait_for_autoscaler(service)
    closed = 0
    for process in service.family()[1:]:
        for address in listening(process):
            host = "127.0.0.1" if address.ip in ("::", "0.0.0.0") else address.ip
            for path in ("api/version", "api/jobs/", "get_or_create_runtime_env"):
                try:
                    answer = httpx.post(f"http://{host}:{address.port}/{path}", timeout=10)
                except httpx.HTTPError:  # speaks gRPC, or hangs up
                    closed += 1
                else:
                    assert answer.status_code in (401, 403), (process.cmdline(), path, answer.text)
    assert closed > 0
