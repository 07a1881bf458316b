"""What must hold of a job, whatever happened meanwhile, and how processes of a service are found."""

from featurespeed.contract import Job, Report
from featurespeed_workers import local
from tests.service import stand_in
from tests.service.service_process import TERMINAL, wait_until


def events_of(store, job_id):
    return [Job.model_validate_json(event.data).status for event in store.events(job_id) if event.type == "status"]


def violations(store, job_id):
    """What is wrong with a job that should have succeeded: lost, ended twice, or another result than undisturbed."""
    job = store.get(job_id)
    if job.status != "succeeded":
        return [f"{job_id} is {job.status}: {job.error}"]
    found = []
    if (ends := [status for status in events_of(store, job_id) if status in TERMINAL]) != ["succeeded"]:
        found.append(f"{job_id} ended as {ends}")
    report = Report.model_validate_json(store.result(job_id).text)
    if job.kind == "recommend":
        here = local.answer(job.request, threads=1)
        if report.model_dump(exclude={"provenance"}) != here.model_dump(exclude={"provenance"}):
            found.append(f"{job_id} has another report than an undisturbed run")
        return found
    values = report.measurements[0].loss_over_seeds.values
    expected = [stand_in.value_of(job.request, seed) for seed in job.request.measurement.seeds]
    if list(values) != expected:
        found.append(f"{job_id} has {values}, not {expected}")
    return found


def part(service, what, seconds=120):
    """A process of the service: ``dispatcher``, ``worker``, ``raylet`` or ``gcs``, once Ray has started."""
    wait_until(lambda: _find(service, "worker"), seconds, "a worker")
    return wait_until(lambda: _find(service, what), seconds, what)


def _find(service, what):
    try:
        dispatcher = service.dispatcher()
        if what == "dispatcher":
            return dispatcher
        names = {"worker": "ray::", "raylet": "raylet", "gcs": "gcs_server"}
        children = dispatcher.children(recursive=True)
        # workers that compute before those that wait
        titles = [(_title(child), child) for child in children]
        found = [(names[what] in text and "Agent" not in text, "IDLE" not in text, child) for text, child in titles]
        chosen = sorted((f for f in found if f[0]), key=lambda f: not f[1])
        return chosen[0][2] if chosen else None
    except Exception:  # it died while we looked
        return None


def _title(process):
    try:
        return f"{process.name()} {process.cmdline()[0]}"
    except Exception:
        return ""
