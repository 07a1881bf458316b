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
from tests.figures.made_up import curves
from tests.figures.made_up import report as made_up
from tests.service.browser import opened
from tests.service.conftest import Api
from tests.service.service_process import wait_until
from tests.service.specs import request
from tests.service.test_api import claimed

LISTED = "document.querySelectorAll('tr[data-job]').length"
TEXT = "document.getElementById('main').innerText"


def text_of(id):
    return f"(document.getElementById('{id}')?.innerText ?? '')"


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
    with opened(profile := tmp_path_factory.mktemp("profile")) as browser:
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
    browser.evaluate(f"document.getElementById('key').value = {json.dumps(key)}; document.forms.login.requestSubmit()")


def open_page(browser, api, path=""):
    browser.call("Page.navigate", url="about:blank")  # else a change of the fragment alone loads nothing
    browser.call("Page.navigate", url=f"{str(api.http.base_url).rstrip('/')}/{path}")


def test_with_a_key(guarded_api, browser, tmp_path):
    api, store = guarded_api, guarded_api.store.of_tenant("alice")
    made, token = api.store.keys.create("alice", Grant("alice"))
    open_page(browser, api)
    browser.until("!!document.forms.login")
    picture(browser, "asks")
    log_in(browser, "nonsense")
    browser.until(f"{TEXT}.includes('has the form fsk_')")
    log_in(browser, token[:-1] + ("0" if token[-1] != "0" else "1"))
    browser.until(f"{TEXT}.includes('unknown, wrong or revoked') && !sessionStorage.length")
    log_in(browser, token)
    browser.until(f"{TEXT}.includes('No jobs yet')")

    browser.evaluate("location.hash = '#/new'")
    browser.until("!!document.getElementById('submit')")
    browser.evaluate("document.getElementById('submit').click()")
    browser.until(f"{text_of('status')} === 'queued'")
    (job,) = store.page().jobs
    lease = claimed(api, job)  # the second event: the stream is cut
    browser.until(f"{text_of('status')} === 'running'")
    api.store.record(lease, progress=Progress(cells_done=1, cells_total=3, fraction=0.4, message="halfway"))
    browser.until(f"{text_of('message')}.includes('halfway')")
    followed = f"/v1/jobs/{job.id}/events"
    resumed = [headers.get("last-event-id") for path, _, headers in api.requests if path == followed]
    assert resumed == [None, str(store.events(job.id)[1].seq)]
    shown = report()
    api.store.succeed(lease, shown.model_dump_json())
    browser.until(f"{text_of('result')}.includes('master learning rate')")
    picture(browser, "result")
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.evaluate("document.getElementById('download').click()")
    wait_until((saved := tmp_path / f"{job.id}.json").exists, 30, "the report as a file")
    assert saved.read_text() == shown.model_dump_json()

    browser.call("Page.reload")
    browser.until(f"{text_of('result')}.includes('master learning rate')")
    api.store.keys.revoke(made.id)
    browser.evaluate("location.hash = '#/'")
    browser.until("!!document.forms.login && !sessionStorage.length")
    assert job.id not in browser.evaluate(TEXT)

    keyless = {path for path, _, headers in api.requests if "authorization" not in headers}
    assert {path for path in keyless if path != "/" and not path.startswith("/static/")} <= {"/v1/events"}
    secret = parse_token(token)[1]
    assert not [
        told for path, query, headers in api.requests if secret in (told := f"{path}{query}{headers.get('referer')}")
    ]
    assert secret not in browser.evaluate("location.href + document.cookie + JSON.stringify(localStorage)")
    assert browser.complaints == [], browser.complaints


def test_the_reference_needs_nobody_else(api, browser):
    """Swagger UI shows every operation, asks this service alone, and stays within its policy; see OFFLINE."""
    open_page(browser, api, "docs")
    browser.until("document.querySelectorAll('.opblock').length > 10")
    document = api.http.get("/openapi.json").json()
    declared = {f"{method.upper()} {path}" for path, operations in document["paths"].items() for method in operations}
    shown = browser.evaluate(
        "[...document.querySelectorAll('.opblock')].map(b => b.querySelector('.opblock-summary-method').innerText"
        " + ' ' + b.querySelector('.opblock-summary-path').dataset.path)"
    )
    assert set(shown) == declared
    browser.evaluate("document.querySelector('.opblock-summary-control').click()")
    browser.until("!!document.querySelector('.opblock-body .responses-wrapper')")
    picture(browser, "docs")
    asked = browser.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert len(asked) >= 4
    assert [address for address in asked if not address.startswith((str(api.http.base_url), "data:"))] == []
    policy = api.http.get("/docs").headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert "http" not in policy
    assert browser.complaints == [], browser.complaints


def test_an_unknown_job_is_told(api, browser):
    open_page(browser, api, "#/jobs/job_none")
    browser.until(f"{TEXT}.includes('no job has the id')")
    assert browser.complaints == []


def test_a_lost_connection_is_told_and_regained(tmp_path, browser):
    with Api(tmp_path / "api") as api:
        job = api.store.submit(request(3))
        open_page(browser, api, f"#/jobs/{job.id}")
        browser.until(f"{text_of('status')} === 'queued'")
        browser.call("Network.enable")
        network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        browser.call("Network.emulateNetworkConditions", offline=True, **network)
        api.app.state.context.stopping.set()  # the open stream ends
        browser.until("!document.getElementById('connection').hidden")
        api.app.state.context.stopping.clear()
        lease = claimed(api, job)
        browser.call("Network.emulateNetworkConditions", offline=False, **network)
        browser.until(f"{text_of('status')} === 'running' && document.getElementById('connection').hidden")
        assert lease


def test_two_hundred_jobs_are_listed_and_follow_what_happens(tmp_path, browser):
    with Api(tmp_path / "api") as api:
        jobs = [api.store.submit(request(i)) for i in range(200)]
        open_page(browser, api)
        browser.until(f"{LISTED} === 50")
        for count in (100, 150, 200):
            browser.evaluate("[...document.querySelectorAll('button')].find(b => b.innerText === 'Older jobs').click()")
            browser.until(f"{LISTED} === {count}")
        listed = browser.evaluate("[...document.querySelectorAll('tr[data-job]')].map(row => row.dataset.job)")
        assert listed == [job.id for job in reversed(jobs)]
        api.store.cancel(jobs[-1].id)
        browser.until(f"document.querySelector('tr[data-job={jobs[-1].id}] .badge').innerText === 'cancelled'", 5)
        new = api.store.submit(request(999))
        browser.until(f"document.querySelector('tr[data-job]').dataset.job === '{new.id}'", 5)
        assert smoothly_scrolled(browser)


def smoothly_scrolled(browser):
    """Whether no frame of a scroll through the whole page takes longer than a fifth of a second."""
    longest = browser.evaluate("""new Promise(done => {
        let last = performance.now(), longest = 0, y = 0;
        const step = now => {
            longest = Math.max(longest, now - last); last = now; y += 400; scrollTo(0, y);
            y < document.documentElement.scrollHeight ? requestAnimationFrame(step) : done(longest);
        };
        requestAnimationFrame(step);
    })""")
    return longest < 200


def test_a_report_of_five_hundred_layers_scrolls_and_hostile_names_are_text(tmp_path, browser):
    names = ["<img src=x onerror='window.hacked=1'>", *(f"hidden_{i}" for i in range(2, 500)), "<b>output</b>"]
    large = made_up(names=names, steps=(0, 10), evidence=curves(50))
    with Api(tmp_path / "api") as api:
        job = api.store.submit(request(4))
        api.store.succeed(claimed(api, job), large.model_dump_json())
        open_page(browser, api, f"#/jobs/{job.id}")
        browser.until("document.querySelectorAll('.main-svg .xtick').length > 20", 60)
        assert "<img src=x onerror" in browser.evaluate(TEXT)
        assert browser.evaluate("window.hacked") is None
        assert browser.evaluate("document.querySelectorAll('#result img').length") == 0
        assert smoothly_scrolled(browser)
        assert browser.complaints == []


def test_it_is_there_at_once(api, browser):
    """From the navigation to a list that can be used, on loopback; the figures' library is loaded when it is needed."""
    open_page(browser, api)
    browser.until("!!document.querySelector('table.jobs')")
    milliseconds = browser.evaluate("performance.getEntriesByType('navigation')[0].domInteractive")
    assert milliseconds < 1500
    assert not browser.evaluate("performance.getEntriesByType('resource').some(r => r.name.includes('plotly'))")


def field(path):
    return f"document.querySelector('[data-path=\"{path}\"] :is(input, select, textarea)')"


def change(browser, path, value):
    browser.evaluate(f"e = {field(path)}; e.value = {json.dumps(value)}; e.dispatchEvent(new Event('change'))")


def test_a_model_of_transformers_is_written_with_the_form(api, browser):
    open_page(browser, api, "#/new")
    browser.until("!!document.getElementById('submit')")
    change(browser, "architecture.family", "huggingface")
    change(browser, "architecture.model_type", "llama")
    change(browser, "architecture.config.num_attention_heads", "3")
    change(browser, "data.kind", "tokens")
    browser.evaluate("document.getElementById('submit').click()")
    fault = "document.querySelector('[data-path=\"architecture.config.num_attention_heads\"] .fault')?.innerText ?? ''"
    browser.until(f"({fault}).includes('does not divide hidden_size')")
    small = {"vocab_size": 32, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64}
    for name, value in small.items():
        change(browser, f"architecture.config.{name}", str(value))
    browser.evaluate("document.getElementById('submit').click()")
    browser.until("location.hash.startsWith('#/jobs/')")
    asked = api.store.page().jobs[0].request.architecture
    assert asked.model_type == "llama"
    assert asked.config.model_dump(include={"num_attention_heads", *small}) == {"num_attention_heads": 3, **small}


def test_a_graph_is_written_with_the_form(api, browser):
    layers = [{"layer": "linear", "name": "first", "width": 8}, {"layer": "linear", "name": "head", "width": 10}]
    open_page(browser, api, "#/new")
    browser.until("!!document.getElementById('submit')")
    change(browser, "architecture.family", "graph")
    change(browser, "architecture.input.shape", "64")
    change(browser, "architecture.layers", json.dumps([*layers, {"layer": "linear", "name": "lost", "input": "nil"}]))
    browser.evaluate("document.getElementById('submit').click()")
    fault = "document.querySelector('[data-path=\"architecture.layers\"] .fault')?.innerText ?? ''"
    browser.until(f"({fault}).length > 0")
    change(browser, "architecture.layers", json.dumps(layers))
    change(browser, "architecture.input.shape", "[64]")
    browser.evaluate("document.getElementById('submit').click()")
    browser.until("location.hash.startsWith('#/jobs/')")
    asked = api.store.page().jobs[0].request.architecture
    assert [layer.name for layer in asked.layers] == ["first", "head"]
