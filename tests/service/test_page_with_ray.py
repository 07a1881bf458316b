"""The web page from end to end: a form, a real service with Ray, figures, and the lines that it gives to copy."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.service.browser import opened
from tests.service.service_process import ServiceProcess
from tests.service.test_page import TEXT, open_page, picture, text_of

AXE = Path(find_spec("axe_playwright_python").submodule_search_locations[0]) / "axe.min.js"
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    with ServiceProcess(tmp_path_factory.mktemp("real"), engine="featurespeed_workers.stages") as service:
        service.wait_ready()
        yield service


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def field(path):
    return f"document.querySelector('[data-path=\"{path}\"] :is(input, select)')"


def change(browser, path, value):
    browser.evaluate(f"e = {field(path)}; e.value = '{value}'; e.dispatchEvent(new Event('change'))")


def shown_in_schemes(browser, name):
    """Light, then dark, with a picture of each."""
    for scheme in SCHEMES:
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        picture(browser, f"{name}-{scheme}")
        yield scheme


def seen(browser, name, width=1200):
    """Pictures for people, light and dark, and what axe finds serious in each."""
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.evaluate(AXE.read_text() + "; 0")
    for scheme in shown_in_schemes(browser, name):
        found = browser.evaluate(
            "axe.run().then(r => r.violations.filter(v => ['serious', 'critical'].includes(v.impact))"
            ".map(v => [v.id, v.nodes.slice(0, 3).map(n => n.html.slice(0, 200))]))"
        )
        assert found == [], (name, scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_a_job_from_the_form_to_code_that_runs(real, browser, tmp_path):
    open_page(browser, real, "#/new")
    browser.until("!!document.getElementById('submit')")
    seen(browser, "new")
    seen(browser, "new-narrow", 360)
    change(browser, "architecture.width", "0")
    browser.evaluate("document.getElementById('submit').click()")
    fault = "document.querySelector('[data-path=\"architecture.width\"] .fault').innerText"
    browser.until(f"{fault}.includes('greater than or equal to 1')")
    assert browser.evaluate(f"{field('architecture.width')}.getAttribute('aria-invalid')") == "true"
    seen(browser, "refused")
    change(browser, "architecture.width", "48")
    change(browser, "measurement.seeds", "0, 1")
    change(browser, "measurement.steps", "60")
    change(browser, "measurement.every", "5")
    browser.evaluate("document.getElementById('submit').click()")
    browser.until("location.hash.startsWith('#/jobs/')")
    positions = []

    def told():
        positions.append(browser.evaluate("document.getElementById('bar')?.value ?? 0"))
        return browser.evaluate(
            "!document.getElementById('live').hidden && document.querySelectorAll('#live tr').length > 2"
        )

    while not told():
        assert browser.evaluate(text_of("status")) in ("", "queued", "running")
    list(shown_in_schemes(browser, "running"))
    browser.until(
        f"{text_of('status')} === 'succeeded' && document.querySelectorAll('[data-figure] .main-svg').length >= 12", 120
    )
    assert sorted(positions) == positions  # never back
    assert 0 < positions[-1] < 1
    assert browser.evaluate("[...document.querySelectorAll('#result [data-figure]')].map(f => f.dataset.figure)") == [
        "scaling", "angles", "contributions", "sizes", "losses", "angles_along_training"
    ]  # fmt: skip
    seen(browser, "report")
    seen(browser, "report-narrow", 360)
    open_list(browser)
    seen(browser, "jobs")
    browser.evaluate("history.back()")
    browser.until("document.querySelectorAll('[data-figure] .main-svg').length >= 12")
    works(copied(browser, "use-snippet"), tmp_path)
    assert browser.complaints == []


def open_list(browser):
    browser.evaluate("location.hash = '#/'")
    browser.until("!!document.querySelector('tr[data-job]')")


def copied(browser, id):
    """What the button puts on the clipboard; headless, the page is given one of ours."""
    browser.evaluate("navigator.clipboard.writeText = async text => { window.copied = text; }")
    browser.evaluate(f"document.querySelector('#{id} button').click()")
    return browser.until("window.copied")


def works(lines, folder):
    """The lines set up a model of the job's architecture: scales, and a training that learns."""
    ast.parse(lines)
    (folder / "setup_lines.py").write_text(lines)
    code = """
import torch, torch.nn.functional as F
from setup_lines import PARAMETERS, initialize, optimizers, schedule
from featurespeed.contract import parse_request
from featurespeed_workers.architectures import build
from sklearn.datasets import load_digits
torch.manual_seed(0)
spec = {"family": "mlp", "input_dim": 64, "width": 48, "depth": 6, "output_dim": 10}
request = {"kind": "measure", "architecture": spec, "data": {"kind": "digits"}, "loss": "cross_entropy"}
model = build(parse_request(request).architecture, seed=0).module
initialize(model)
for name, p in model.named_parameters():
    mean, std, _ = PARAMETERS[name]
    assert abs(float((p - mean).square().mean().sqrt()) - std) < 0.15 * std, name
x, y = load_digits(return_X_y=True)
x, y = torch.tensor((x - x.mean()) / x.std()).float(), torch.tensor(y)
[optimizer] = optimizers(model)
assert [g["lr"] for g in optimizer.param_groups] == [PARAMETERS[name][2] for name, _ in model.named_parameters()]
steps = schedule(optimizer, 100)
for _ in range(100):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad(); loss.backward(); optimizer.step(); steps.step()
print(float(loss))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3  # of 2.3 at the start


def test_a_long_job_is_cancelled(real, browser):
    open_page(browser, real, "#/new")
    browser.until("!!document.getElementById('submit')")
    change(browser, "measurement.steps", "100000")
    browser.evaluate("document.getElementById('submit').click()")
    browser.until(f"{text_of('status')} === 'running'")
    browser.evaluate("document.getElementById('cancel').click()")
    browser.until(f"{text_of('status')} === 'cancelled'")
    browser.until("document.getElementById('cancel').hidden && !document.getElementById('retry').hidden")


def test_the_form_and_its_json_are_the_same(real, browser):
    """Every example goes through the form unchanged; JSON that is no JSON is told."""
    open_page(browser, real, "#/new")
    browser.until("!!document.getElementById('submit')")
    examples = browser.evaluate("fetch('static/examples.json').then(r => r.json())")
    toggle = "[...document.querySelectorAll('form button')].find(b => /JSON|form/.test(b.innerText)).click()"
    for name, document in examples.items():
        browser.evaluate(
            f"e = document.getElementById('example'); e.value = {name!r};e.dispatchEvent(new Event('change')); {toggle}"
        )
        assert browser.evaluate("JSON.parse(document.getElementById('spec').value)") == document
        browser.evaluate(toggle)
    browser.evaluate(f"{toggle}; document.getElementById('spec').value = '{{'; {toggle}")
    browser.until(f"{TEXT}.includes('This is no JSON')")
