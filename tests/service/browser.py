"""A Chromium, spoken to over a pipe by the DevTools protocol."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"
"""Only this machine can be reached: what a page needs from elsewhere is missing in every test."""
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", OFFLINE)


class Unavailable(Exception):
    """No browser can be started on this machine."""


@cache
def chromium():
    """The program, installed from Debian's packages where it is missing and we may; raises Unavailable."""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable("there is no Chromium, and no right to install it: apt-get install chromium")
    install = "apt-get update -q && apt-get install -q -y --no-install-recommends chromium"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(install, shell=True, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode != 0 or (found := shutil.which("chromium")) is None:
        raise Unavailable(f"Chromium cannot be installed: {done.stderr.strip()[-300:]}")
    return found


@contextmanager
def opened(profile: Path):
    """A browser; where none can be had the test is skipped, with the reason."""
    try:
        chromium()
    except Unavailable as why:
        pytest.skip(str(why))
    with Browser(profile) as browser:
        yield browser


class Browser:
    """One page of a browser with a profile of its own."""

    def __init__(self, profile: Path):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # it reads from descriptor 3 and writes to 4
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (theirs_in, theirs_out)]
        options = [*OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{high[0]} 4>&{high[1]}', "sh", chromium(), *options],
            pass_fds=high,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *high):
            os.close(end)
        self._ends, self._text, self._number, self._session = (ours_in, ours_out), b"", 0, None
        self.complaints = []
        """What the page threw, and what its policy forbade."""

    def __enter__(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self._session = None
        self.call("Browser.close")
        self._process.wait(20)
        for end in self._ends:
            os.close(end)

    def call(self, method, **parameters):
        """The result of a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._ends[1], json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self):
        while b"\0" not in self._text:
            assert select.select(self._ends[:1], [], [], 30)[0], "the browser is silent"
            piece = os.read(self._ends[0], 1 << 20)
            assert piece, "the browser has ended"
            self._text += piece
        message, _, self._text = self._text.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        entry = event.get("params", {}).get("entry", {})
        if event.get("method") == "Runtime.exceptionThrown" or entry.get("source") == "security":
            self.complaints.append(event["params"])

    def evaluate(self, script):
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, condition, seconds=30):
        """The first true value of an expression; while a page is loading it may have none."""
        end = time.monotonic() + seconds
        while True:
            found = self.call("Runtime.evaluate", expression=condition, returnByValue=True)
            if value := found["result"].get("value"):
                return value
            text = self.evaluate("document.body ? document.body.innerText : ''")
            assert time.monotonic() < end, f"{condition}: not within {seconds} s, but\n{text}"
            time.sleep(0.05)
