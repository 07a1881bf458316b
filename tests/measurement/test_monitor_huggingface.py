"""The callback in real runs of the Hugging Face Trainer: a GPT-2 of two layers, random tokens, nothing downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from featurespeed_workers import measure
from featurespeed_workers.losses import cross_entropy, own_loss
from featurespeed_workers.monitoring.records import Record
from tests.measurement.identity import same

callbacks = pytest.importorskip("featurespeed_workers.monitoring.huggingface", exc_type=ImportError)
FeatureSpeedCallback = callbacks.FeatureSpeedCallback
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'featurespeed[huggingface]'")
transformers = pytest.importorskip("transformers")

BLOCKS = {
    "transformer.drop": ["transformer.wte", "transformer.wpe"],
    "transformer.h.0": [],
    "transformer.h.1": [],
    "lm_head": ["transformer.ln_f"],
}
LAYERS = ["transformer.drop", "transformer.h.0", "transformer.h.1", "lm_head"]


def make_gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=37, n_positions=12, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def fit(folder: Path, callbacks: list[Any], max_steps: int = 7, **options: Any) -> dict[str, object]:
    """Train on random tokens: all that training changes, of model, optimizer and random state, and what was logged."""
    tokens = torch.randint(0, 37, (64, 12), generator=torch.Generator().manual_seed(1))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=max_steps, per_device_train_batch_size=4, learning_rate=1e-2,
        weight_decay=0.1, warmup_steps=2, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True, dataloader_pin_memory=False, seed=7, **options
    )  # fmt: skip
    model = make_gpt2()
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=[{"input_ids": t, "labels": t} for t in tokens], callbacks=callbacks
    )
    trainer.train()
    return {
        "model": model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


@pytest.mark.parametrize("blocks", [BLOCKS, None], ids=["named", "found"])
def test_a_run_is_recorded_and_the_same_to_the_bit(tmp_path, blocks) -> None:
    plain = fit(tmp_path, [])
    callback = FeatureSpeedCallback(to=tmp_path / "run.jsonl", every=3, blocks=blocks)
    assert same(fit(tmp_path, [callback]), plain)
    found = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [record["step"] for record in found] == [0, 3, 6]
    for record in found:
        assert record["error"] is None
        assert [block["name"] for block in record["blocks"]] == LAYERS
        assert record["method"] == "exact"
        assert record["formula_residual"] < 1e-4
    assert [record["blocks"][1]["learning_rates"] for record in found[:1]] == [[0.0]]  # warm-up begins at 0
    assert found[1]["loss_decay"] > 0


def test_numbers_are_those_of_measure_and_of_the_trainers_own_step(tmp_path) -> None:
    """A callback that comes first measures by hand, on the arguments of the model's last forward pass."""
    given: dict[str, Any] = {}
    expected: list[Any] = []
    found: list[Record] = []

    class First(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, *, model, **_):
            self.hook = model.register_forward_pre_hook(lambda m, a, kwargs: given.update(kwargs), with_kwargs=True)

        def on_pre_optimizer_step(self, args, state, control, *, model, optimizer, **_):
            inputs = {name: given[name] for name in ("input_ids", "labels")}
            expected.append(
                measure(
                    model, [(inputs, None)], loss=own_loss, optimizer=optimizer.optimizer, learning_rates="optimizer",
                    blocks=BLOCKS,
                ).measurements[0]
            )  # fmt: skip

    losses = fit(tmp_path, [First(), FeatureSpeedCallback(to=found.append, every=1, blocks=BLOCKS)], 4)["losses"]
    assert [record.step for record in found] == [0, 1, 2, 3]
    for record, measured, loss in zip(found, expected, losses, strict=True):
        assert record.loss == measured.loss
        assert record.loss == pytest.approx(loss, rel=0.1)  # other dropout masks
        assert [b.angle for b in record.blocks] == [layer.angle.mean for layer in measured.layers]
        assert [b.contribution for b in record.blocks] == [layer.contribution.mean for layer in measured.layers]


def test_under_gradient_accumulation_the_first_batch_is_measured(tmp_path) -> None:
    found: list[Record] = []
    losses = fit(
        tmp_path, [FeatureSpeedCallback(to=found.append, every=1, blocks=BLOCKS)], 2, gradient_accumulation_steps=4
    )["losses"]
    assert [record.step for record in found] == [0, 1]
    assert [record.loss for record in found] == [pytest.approx(loss, rel=0.1) for loss in losses]


def test_a_loss_and_a_batch_of_ones_own(tmp_path) -> None:
    def batch(given):
        return {"input_ids": given["input_ids"]}, given["labels"][:, 1:]

    def loss(outputs, labels):
        return cross_entropy(outputs.logits[:, :-1], labels)

    found, by_model = [], []
    fit(
        tmp_path,
        [
            FeatureSpeedCallback(to=found.append, every=1, blocks=BLOCKS, batch=batch, loss=loss),
            FeatureSpeedCallback(to=by_model.append, every=1, blocks=BLOCKS),
        ],
        2,
    )
    for own, models in zip(found, by_model, strict=True):
        assert own.loss == pytest.approx(models.loss, rel=1e-6)
        for a, b in zip(own.blocks, models.blocks, strict=True):
            assert a.contribution == pytest.approx(b.contribution, rel=1e-4, abs=1e-9)


def test_bfloat16_is_measured_as_the_trainer_runs_it(tmp_path) -> None:
    found: list[Record] = []
    fit(tmp_path, [FeatureSpeedCallback(to=found.append, every=1, blocks=BLOCKS)], 2, bf16=True)
    assert all(record.error is None and record.formula_residual < 5e-2 for record in found)
    assert len(found) == 2


def test_labels_that_never_reach_the_model_are_told(tmp_path) -> None:
    found: list[Record] = []
    fit(tmp_path, [FeatureSpeedCallback(to=found.append, every=1, blocks=BLOCKS)], 2, label_smoothing_factor=0.1)
    assert ["needs labels among its inputs" in record.error.detail for record in found] == [True, True]


def test_misuse_raises_at_the_first_step(tmp_path) -> None:
    with pytest.raises(ValueError, match="no submodule 'nowhere'"):
        fit(tmp_path, [FeatureSpeedCallback(to=print, blocks=["nowhere", "lm_head"])])
