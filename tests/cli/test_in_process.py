"""The command without a server: the engine in its own process."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from featurespeed.contract import ProbeResult, Report
from tests.cli.command import ENVIRONMENT, refused, run, start
from tests.client.reports import SPEC_WITHOUT_KIND

ROOT = Path(__file__).parents[2]


def test_measure_and_the_same_numbers_again(spec: Path) -> None:
    first, second = (run("measure", spec, "--json", "--seeds", "0,5") for _ in range(2))
    assert first.returncode == 0
    reports = [Report.model_validate_json(done.stdout) for done in (first, second)]
    assert reports[0].measurements == reports[1].measurements
    assert [layer.name for layer in reports[0].measurements[0].layers] == ["input", "hidden_2", "output"]
    assert reports[0].provenance.seeds == (0, 5)
    assert " done, " in first.stderr


def test_table_of_a_training_run(spec: Path) -> None:
    done = run("measure", spec, "--steps", "10")
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("input", "hidden_2", "output")] == [
        "input",
        "hidden_2",
        "output",
    ]
    assert {"0", "10"} <= {row[0] for row in rows if row}


def test_a_recommendation_with_steps_shows_both_runs(spec: Path) -> None:
    done = run("recommend", spec, "--steps", "10")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for name in ("recommended ", "PyTorch default "):
        [line] = [line for line in lines if line.strip().startswith(name)]
        mean, final, _ = line.strip().removeprefix(name).split()
        assert float(mean) > 0
        assert float(final) > 0
    [titles] = [line for line in lines if "rate drift" in line]
    assert "between blocks" in titles


def test_refined_by_probes(spec: Path, tmp_path: Path) -> None:
    document = {**SPEC_WITHOUT_KIND, "scaling": {"refine": {"steps": 9, "factors": [0.25, 0.5]}}}
    (tmp_path / "given.json").write_text(json.dumps(document))
    done = run("recommend", tmp_path / "given.json", "--refine", "7", "--out", tmp_path / "report.json")
    assert done.returncode == 0
    advice = Report.model_validate_json((tmp_path / "report.json").read_text()).recommendation
    probes = advice.refinement.probes
    assert {0.25, 0.5} < {probe.factor for probe in probes}  # the factors of the file are kept
    assert [probe.steps for probe in probes] == [(7,)] * 4
    text = done.stdout.splitlines()
    [top] = [number for number, line in enumerate(text) if line.split()[:2] == ["probe", "κ"]]
    rows = [line.split() for line in text[top:] if line.strip()][2:6]  # below the titles and a rule
    for row, probe in zip(rows, probes, strict=True):
        numbers = (probe.feature_step, probe.factor, probe.score, None, *probe.mean_log_loss, *probe.late_log_loss, 7)
        assert row == ["–" if x is None else f"{x:.4g}" for x in numbers] + ["lowest"] * probe.chosen
    asked = f"{advice.refinement.asked_feature_step:.4g} without"
    assert f"{advice.feature_step:.4g} by probes (4 factors, 28 steps in all); {asked}" in done.stdout
    assert "probe 2 seed 0: κ × 0.5" in done.stderr
    assert f"probe 4 seed 0: κ × {_second_round(probes):g}" in done.stderr
    assert "scaling.refine.steps" in refused(run("recommend", spec, "--refine", "2"))


def _second_round(probes: Sequence[ProbeResult]) -> float:
    """The last factor that is tried after ¼ and ½."""
    scores = {probe.factor: probe.score for probe in probes}
    return 1 / 16 if scores[0.25] < scores[0.5] else 2.0


def test_dataset_beside_the_specification(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {"inputs": random.normal(size=(8, 4)), "targets": random.normal(size=(8, 2))}
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, tmp_path / "set.safetensors")
    document = {**SPEC_WITHOUT_KIND, "data": {"kind": "dataset", "batch_size": 4, "path": "set.safetensors"}}
    (tmp_path / "spec.json").write_text(json.dumps(document))
    assert run("measure", tmp_path / "spec.json").returncode == 0
    (tmp_path / "set.safetensors").write_bytes(b"none")
    assert "error: data" in refused(run("measure", tmp_path / "spec.json"))


def test_a_network_that_cannot_be_measured(tmp_path: Path) -> None:
    document = {**SPEC_WITHOUT_KIND, "initialization": {"input": 1e6, "hidden": 1e6, "output": 1e6}}
    document["architecture"] = {**document["architecture"], "depth": 40}
    (tmp_path / "spec.json").write_text(json.dumps(document))
    done = run("measure", tmp_path / "spec.json")
    assert (done.returncode, done.stdout) == (3, "")
    assert "not finite" in done.stderr.splitlines()[-1]


def test_neither_ray_nor_the_service_is_loaded(spec: Path) -> None:
    code = """
import sys
from featurespeed.cli import main
try:
    main()
finally:
    print([m for m in ("ray", "fastapi", "sqlalchemy", "sklearn", "httpx") if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "measure", spec], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "[]"


def test_ctrl_c(spec: Path) -> None:
    process = start("measure", spec, "--steps", "100000", stdout=subprocess.PIPE)
    assert process.stderr is not None
    assert " done, " in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "interrupted"


def test_ctrl_c_in_code_that_is_made_from_a_string(spec: Path, tmp_path: Path) -> None:
    """As dataclasses make theirs while torch is imported: CPython takes it for an interrupt that nobody caught."""
    (tmp_path / "interrupted.py").write_text("""
import featurespeed.cli.app
featurespeed.cli.app.answer = lambda kind, question: exec("raise KeyboardInterrupt")
featurespeed.cli.main()
""")
    done = subprocess.run(
        [sys.executable, "-m", "interrupted", "measure", spec],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_report_for_two_optimizers_says_so(spec: Path) -> None:
    spec.write_text(json.dumps({**SPEC_WITHOUT_KIND, "optimizer": {"name": "muon"}}))
    done = run("recommend", spec)
    assert done.returncode == 0
    [line] = [line for line in done.stdout.splitlines() if line.startswith("optimizers ")]
    assert "adamw for 2 tensors, muon for 1 tensors" in line


def test_a_model_of_transformers(tmp_path: Path) -> None:
    """The example, with one seed: blocks go by their names, with the model's own path beside each."""
    done = run("recommend", ROOT / "examples" / "gpt2.yaml", "--seeds", "0", "--out", tmp_path / "report.json")
    assert done.returncode == 0
    assert "transformers" not in done.stderr  # no warning of that library's
    advice = Report.model_validate_json((tmp_path / "report.json").read_text()).recommendation
    assert [block.name for block in advice.blocks] == ["input", *(f"hidden_{i}" for i in range(2, 6)), "output"]
    blocks = ["transformer.drop", *(f"transformer.h.{i}" for i in range(4)), "lm_head"]
    assert [block.module for block in advice.blocks] == blocks
    assert "transformer.h.3.mlp.c_proj.weight" in {p.name for p in advice.parameters}
