"""The web page in a real browser: with a key, without, and over a stream that breaks."""

import asyncio
import base64
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from featurespeed.contract import Progress
from featurespeed_service.store.keys import Grant, parse_token
from tests.client.reports import report
from tests.service.browser import Browser, Unavailable, chromium
from tests.service.conftest import Api
from tests.service.service_process import wait_until
from tests.service.test_api import claimed

LISTED = "document.querySelectorAll('#jobs tr.link').length"


class Recorder:
    """Notes every request; cuts the first event stream after ``cut_after`` events."""

    def __init__(self, app, requests, cut_after=2):
        self._app, self._requests, self._left = app, requests, cut_after

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self._requests.append((scope["path"], scope["query_string"].decode(), headers))
        cut = asyncio.Event()

        async def counted(message):
            await send(message)
            self._left -= message.get("body", b"").count(b"\nid: ")
            if self._left <= 0 and scope["path"].endswith("/events"):
                self._left = 10**9
                cut.set()

        answer = asyncio.ensure_future(self._app(scope, receive, counted))
        await asyncio.wait([answer, broken := asyncio.ensure_future(cut.wait())], return_when=asyncio.FIRST_COMPLETED)
        broken.cancel()
        if cut.is_set():
            answer.cancel()  # the server then closes the connection, for the answer is not whole
        with suppress(asyncio.CancelledError):
            await answer


@pytest.fixture
def guarded_api(tmp_path):
    with Api(tmp_path / "api", require_keys=True) as api:
        api.requests = []
        api.app.add_middleware(Recorder, requests=api.requests)
        yield api


@pytest.fixture(scope="module")
def own_browser(tmp_path_factory):
    try:
        chromium()
    except Unavailable as error:
        pytest.skip(str(error))
    with Browser(profile := tmp_path_factory.mktemp("profile")) as browser:
        yield browser
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture
def browser(own_browser):
    own_browser.complaints.clear()
    return own_browser


def picture(browser, name):
    """A picture of the page, for people, in the folder that $PICTURES names."""
    if folder := os.environ.get("PICTURES"):
        data = browser.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(data))


def log_in(browser, key):
    browser.evaluate(f"$('key').value = {json.dumps(key)}; $('login').requestSubmit()")


def test_with_a_key(guarded_api, browser, tmp_path):
    api, store = guarded_api, guarded_api.store.of_tenant("alice")
    made, token = api.store.keys.create("alice", Grant("alice"))
    browser.call("Page.navigate", url=str(api.http.base_url))
    browser.until("!$('login').hidden && $('work').hidden")
    picture(browser, "asks")
    log_in(browser, "nonsense")
    browser.until("$('unwanted').textContent.includes('fsk_')")
    log_in(browser, token[:-1] + ("0" if token[-1] != "0" else "1"))
    browser.until("$('unwanted').textContent.includes('unknown, wrong or revoked') && !sessionStorage.length")
    log_in(browser, token)
    browser.until("$('login').hidden && $('jobs').textContent === 'none yet'")

    browser.evaluate("$('submit').click()")
    browser.until(f"$('status').textContent === 'queued' && {LISTED} === 1")
    (job,) = store.page().jobs
    lease = claimed(api, job)  # the second event: the stream is cut
    browser.until("$('status').textContent === 'running'")
    api.store.record(lease, progress=Progress(cells_done=1, cells_total=3, fraction=0.4, message="halfway"))
    browser.until("$('message').textContent.includes('halfway')")
    resumed = [headers.get("last-event-id") for path, _, headers in api.requests if path.endswith("/events")]
    assert resumed == [None, str(store.events(job.id)[1].seq)]
    api.store.succeed(lease, report().model_dump_json())
    browser.until("$('result').textContent.includes('master learning rate')")
    picture(browser, "result")
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.evaluate("document.querySelector('#result a').click()")
    wait_until((saved := tmp_path / f"{job.id}.json").exists, 30, "the report as a file")
    assert saved.read_text() == report().model_dump_json()

    browser.call("Page.reload")
    browser.until("typeof $ === 'function' && $('result').textContent.includes('master learning rate')")
    api.store.keys.revoke(made.id)
    browser.until("!$('login').hidden && $('work').hidden && !sessionStorage.length")
    assert job.id not in browser.evaluate("$('jobs').textContent + $('result').textContent")

    assert {path for path, _, headers in api.requests if "authorization" not in headers} <= {"/", "/v1/jobs"}
    secret = parse_token(token)[1]
    assert not [
        told for path, query, headers in api.requests if secret in (told := f"{path}{query}{headers.get('referer')}")
    ]
    assert secret not in browser.evaluate("location.href + document.cookie + JSON.stringify(localStorage)")
    assert browser.complaints == [], browser.complaints


def test_without_keys(api, browser):
    browser.call("Page.navigate", url=str(api.http.base_url))
    browser.until("typeof $ === 'function' && $('login').hidden && $('forget').hidden && $('jobs').rows.length > 0")
    browser.evaluate("$('spec').value = '{}'; $('submit').click()")
    browser.until("$('refused').textContent.includes('architecture')")
    browser.evaluate("location.hash = 'job_none'; location.reload()")
    browser.until("typeof $ === 'function' && $('failed').textContent.includes('job_none')")
    assert browser.complaints == []
