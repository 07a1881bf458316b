"""What ``blocks`` shows, what it refuses, and that it changes nothing."""

from __future__ import annotations

import copy
import os
import pty
import random
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from featurespeed_workers import blocks, measure, recommend
from tests.measurement.cut_models import Gpt, Layer, ResNet
from tests.measurement.identity import same
from tests.measurement.test_cut_nodes import Parts, as_named, linear

TOKENS = torch.arange(14).reshape(2, 7) % 11


def test_the_tree_counts_and_marks() -> None:
    model = Gpt(layers=1)
    model.transformer["h"][0].attn.qkv.weight.requires_grad_(False)
    model.lm_head.spare = nn.Linear(2, 3)
    model.transformer["h"][0].ln_2.weight = model.transformer["h"][0].ln_1.weight
    assert str(blocks(model, TOKENS)).splitlines() == [
        "Gpt, 3 blocks                  1,121  parameters",
        "├─ transformer.drop (Dropout)    144",
        "│  ├─ transformer.wte             88",
        "│  └─ transformer.wpe             56",
        "├─ transformer.h.0 (Layer)       864",
        "│  ├─ transformer.h.0.ln_1        16  tied",
        "│  ├─ transformer.h.0.ln_2         8",
        "│  ├─ transformer.h.0.attn       288  frozen",
        "│  └─ transformer.h.0.mlp        552",
        "└─ lm_head (Linear)              113",
        "   ├─ transformer.ln_f            16",
        "   ├─ lm_head                     88",
        "   └─ lm_head.spare                9  unused",
    ]


def test_counts_are_those_of_the_model() -> None:
    model = ResNet()
    found = blocks(model, torch.randn(2, 1, 8, 8))
    total = sum(p.numel() for p in model.parameters())
    assert sum(part.count for owned in found.owned.values() for part in owned) == total


def test_what_was_found_can_be_passed_on_and_changed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(linear(), nn.Tanh(), linear(), nn.Tanh(), linear()).double()
    batches = [(torch.randn(8, 6).double(), torch.randint(0, 6, (8,))) for _ in range(4)]
    found = blocks(model, batches[0])
    assert recommend(model, batches, blocks=found).recommendation == recommend(model, batches).recommendation
    wider = {"2": ["0"], "4": []}
    assert set(found) - set(wider) == {"0"}
    assert [layer.name for layer in measure(model, batches, blocks=wider).measurements[0].layers] == ["2", "4"]


def state_of(model: nn.Module) -> dict[str, object]:
    return {
        "tensors": [(n, id(x), x._version, x.requires_grad) for n, x in model.state_dict(keep_vars=True).items()],
        "values": copy.deepcopy(model.state_dict()),
        "gradients": [None if p.grad is None else id(p.grad) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "random": (torch.get_rng_state(), random.getstate()),
        "gradient mode": torch.is_grad_enabled(),
    }  # fmt: skip


class Remembers(nn.Module):
    """Keeps its last output and counts its calls; fails if told to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.last, self.calls, self.fails = torch.zeros(1), 0, False

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        self.calls += 1
        if self.fails:
            raise RuntimeError("out of luck")
        return self.last


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_changes(fails: bool, capfd) -> None:
    """To the bit: weights, gradients, buffers, modes, hooks, what modules keep of a pass, random states."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), Remembers(8), nn.Linear(8, 3))
    seen = []
    model[0].register_forward_hook(lambda m, a, output: seen.append(output))
    inputs = torch.randn(5, 6)
    model(inputs).sum().backward()
    model[1].eval()
    model[3].fails = fails
    before, kept = state_of(model), (model[3].last, model[3].calls)
    if fails:
        with pytest.raises(ValueError, match=r"cannot be traced \(RuntimeError: out of luck\)"):
            blocks(model, inputs)
    else:
        assert as_named(blocks(model, inputs)) == [("1", ["0"]), ("3", []), ("4", [])]
    assert same(state_of(model), before)
    assert model[3].last is kept[0]
    assert model[3].calls == kept[1]
    assert capfd.readouterr() == ("", "")


def tied() -> nn.Module:
    model = Gpt(layers=2)
    model.lm_head.weight = model.transformer["wte"].weight
    return model


def test_tied_weights_are_refused_untied_ones_and_frozen_ones_are_not() -> None:
    with pytest.raises(ValueError, match=r"'transformer.wte.weight' acts on both sides .*; untie them"):
        blocks(tied(), TOKENS)
    untied = tied()
    untied.lm_head.weight = nn.Parameter(untied.transformer["wte"].weight.detach().clone())
    assert len(blocks(untied, TOKENS)) == 4
    frozen = tied().double()
    frozen.lm_head.weight.requires_grad_(False)
    found = blocks(frozen, TOKENS)
    assert as_named(found)[0] == ("transformer.drop", ["transformer.wpe", "transformer.wte"])
    assert [part.count for part in found.owned["lm_head"]] == [16]  # the final norm; the matrix belongs to the first
    report = measure(frozen, [(TOKENS, TOKENS)], blocks=found)
    assert report.measurements[0].formula_residual < 1e-9


def test_layers_that_share_weights_are_one_block() -> None:
    model = Gpt(layers=3).double()
    model.transformer["h"][1].attn = model.transformer["h"][0].attn
    found = blocks(model, TOKENS)
    assert as_named(found) == [
        ("transformer.drop", ["transformer.wpe", "transformer.wte"]),
        ("transformer.h.1", ["transformer.h.0"]),
        ("transformer.h.2", []),
        ("lm_head", ["transformer.ln_f"]),
    ]
    assert measure(model, [(TOKENS, TOKENS)], blocks=found).measurements[0].formula_residual < 1e-9
    shared = Parts(lambda m, x: m.d(m.b(m.b(m.a(x)))), a=nn.Embedding(11, 8), b=Layer(8), d=nn.Linear(8, 3))
    assert as_named(blocks(shared, TOKENS)) == [("a", []), ("d", ["b"])]


def test_frozen_blocks_stay_blocks() -> None:
    model = Gpt(layers=2)
    model.transformer["h"].requires_grad_(False)
    assert list(blocks(model, TOKENS)) == ["transformer.drop", "transformer.h.0", "transformer.h.1", "lm_head"]


REFUSED = {
    "no parameter": (lambda: nn.Sequential(nn.ReLU(), nn.Tanh()), "no parameter lies between the input and the output"),
    "no parameter before the loss": (
        lambda: Parts(lambda m, x: x + 0 * x, a=linear(), b=linear()),
        "no parameter lies between the input and the output",
    ),
    "data-dependent control flow": (
        lambda: Parts(lambda m, x: m.b(m.a(x) if x.sum() > 0 else x), a=linear(), b=linear()),
        r"cannot be traced \(GuardOnDataDependentSymNode: .*\); name the cut nodes by hand: blocks=\[",
    ),
    "an error of its own": (lambda: nn.Sequential(nn.Linear(5, 6), linear()), r"cannot be traced \(RuntimeError: .*5"),
    "one block": (lambda: nn.Sequential(linear(), nn.ReLU()), r"at least 2 are needed, found 1: .*; name the cut"),
    "a skip around everything": (
        lambda: Parts(lambda m, x: x + m.b(m.a(x)), a=linear(), b=linear()),
        "at least 2 are needed, found 0: ",
    ),
    "a parameter behind the last module": (
        lambda: Parts(lambda m, x: m.b(m.a(x)) * m.gain, a=linear(), b=linear(), gain=nn.Parameter(torch.ones(6))),
        "parameter 'gain' acts after 'b', the last submodule whose output is a cut node; put it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_why_in_one_line(case: str, capfd) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=rf"^blocks: .*{message}") as caught:
        measure(make(), [(torch.randn(5, 6), torch.zeros(5, dtype=torch.long))])
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_inputs_may_have_names_and_outputs_too() -> None:
    """As Hugging Face has them: keyword arguments, some of them masks; a dictionary with the loss and the logits."""

    class Named(Gpt):
        def forward(self, tokens: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = super().forward(tokens) * mask[..., None]
            return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}

    inputs = {"tokens": TOKENS, "mask": torch.ones(2, 7, dtype=torch.long), "labels": TOKENS}
    model = Named(layers=2).double()
    found = blocks(model, inputs)
    assert as_named(found) == as_named(blocks(Gpt(layers=2), TOKENS))
    report = measure(model, [(inputs, None)], loss=lambda output, _: output["loss"], blocks=found)
    assert report.measurements[0].formula_residual < 1e-9


def test_named_by_hand_it_need_not_be_traced() -> None:
    model = Parts(lambda m, x: m.b(m.a(x) if x.sum() < 1e9 else x), a=linear(), b=linear()).double()
    batch = (torch.randn(5, 6).double(), torch.zeros(5, dtype=torch.long))
    assert measure(model, [batch], blocks=["a", "b"]).measurements[0].formula_residual < 1e-9


SCRIPT = """
import torch
from torch import nn
from featurespeed_workers import measure
measure(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), [(torch.ones(2, 6), torch.tensor([0, 1]))], seeds=(0, 1))
print("done")
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_the_tree_is_shown_on_a_terminal_only(terminal: bool) -> None:
    ours, theirs = pty.openpty()
    error = theirs if terminal else subprocess.PIPE
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=error, text=True, timeout=120, check=True
    )
    os.close(theirs)
    assert done.stdout == "done\n"
    if terminal:
        shown = os.read(ours, 10_000).decode()
        assert shown.count("Sequential, 2 blocks") == 1
        assert "├─ 0 (Linear)" in shown
    else:
        assert done.stderr == ""
    os.close(ours)
