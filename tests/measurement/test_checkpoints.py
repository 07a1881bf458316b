"""Checkpoint files: what is written comes back to the bit, in torch's own names, and a bad file is told apart."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

from featurespeed.contract import SpecError
from featurespeed_workers import load_checkpoint, recommend, save_checkpoint
from featurespeed_workers.optimizers import SignSgd
from tests.measurement.identity import same

OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01),
    "signum": lambda ps: SignSgd(ps, lr=0.01, momentum=0.9),
}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        inputs, targets = batch(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs.to(next(model.parameters()).dtype)), targets).backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.fixture
def saved(tmp_path):
    """A trained model, its optimizer, and their file."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, [optimizer], 3)
    save_checkpoint(tmp_path / "a.safetensors", model, optimizer)
    return model, optimizer, tmp_path / "a.safetensors"


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_training_that_is_taken_up_goes_on_to_the_bit(kind, tmp_path) -> None:
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, [optimizer], 3)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    save_checkpoint(tmp_path / "a.safetensors", model, optimizer)
    assert same((model.state_dict(), optimizer.state_dict()), before)
    other = net(1)
    again = OPTIMIZERS[kind](other.parameters())
    train(other, [again], 1)  # a state that must go
    load_checkpoint(tmp_path / "a.safetensors", other, again)
    train(model, [optimizer], 3, first=3)
    train(other, [again], 3, first=3)
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_two_optimizers_and_half_precision(tmp_path) -> None:
    model = net().bfloat16()

    def optimizers(m):
        matrices = [p for p in m.parameters() if p.ndim == 2]
        return [torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW([p for p in m.parameters() if p.ndim != 2])]

    own = optimizers(model)
    train(model, own, 2)
    save_checkpoint(tmp_path / "a.safetensors", model, own)
    other = net(1).bfloat16()
    again = optimizers(other)
    load_checkpoint(tmp_path / "a.safetensors", other, again)
    assert same([o.state_dict()["state"] for o in again], [o.state_dict()["state"] for o in own])
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_names_and_values_are_those_of_torchs_flattened_state(saved) -> None:
    model, optimizer, path = saved
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    expected = {
        f"optimizer.{key}": value for key, value in get_optimizer_state_dict(model, optimizer, options=options).items()
    }
    found = load_file(path)
    assert {key for key in found if key.startswith("optimizer.state.")} == {
        k for k in expected if k.startswith("optimizer.state.")
    }
    rates = {key for key in found if key.startswith("optimizer.param_groups.")}
    assert rates == {k for k in expected if k.startswith("optimizer.param_groups.") and k.endswith(".lr")}
    for key in found:
        value = expected[key] if key.startswith("optimizer.") else model.state_dict()[key]
        assert torch.equal(found[key], torch.as_tensor(value, dtype=found[key].dtype)), key
    assert {key for key in found if not key.startswith("optimizer.")} == set(model.state_dict())


def test_a_file_is_replaced_as_a_whole_or_not_at_all(saved) -> None:
    _, _, path = saved
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"optimizer: a parameter of shape \[2, 2\] is none of the model's"):
        save_checkpoint(path, net(), torch.optim.SGD(nn.Linear(2, 2).parameters()))
    (path.parent / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        save_checkpoint(path.parent / "folder", net())  # fails when the new file is complete
    (path.parent / "folder").rmdir()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    save_checkpoint(path, net(1))
    assert set(load_file(path)) == set(net().state_dict())
    assert list(path.parent.iterdir()) == [path]


def test_tied_weights_and_views_are_written_once(tmp_path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight
            base = torch.randn(2, 4)  # two parameters on one storage
            self.b.bias, self.a.bias = nn.Parameter(base[0]), nn.Parameter(base[1])

    torch.manual_seed(0)
    model = Tied()
    save_checkpoint(tmp_path / "a.safetensors", model)
    assert set(load_file(tmp_path / "a.safetensors")) == {"a.weight", "a.bias", "b.bias"}
    other = Tied()
    load_checkpoint(tmp_path / "a.safetensors", other)
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    renamed = {name.replace("a.weight", "b.weight"): t for name, t in load_file(tmp_path / "a.safetensors").items()}
    save_file(renamed, tmp_path / "b.safetensors")
    load_checkpoint(tmp_path / "b.safetensors", other)  # by whichever name it was written
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    save_file({**renamed, "a.weight": renamed["b.weight"].clone()}, tmp_path / "b.safetensors")
    with pytest.raises(SpecError, match="tied"):
        load_checkpoint(tmp_path / "b.safetensors", other)


def changed(path, **tensors) -> None:
    """The file with other tensors under these names; ``None`` takes one away."""
    named = {key.replace("__", "."): tensor for key, tensor in tensors.items()}
    kept = {key: t for key, t in load_file(path).items() if key not in named}
    save_file({**kept, **{key: t for key, t in named.items() if t is not None}}, path)


NAN = torch.full((6, 4), 0.5)
NAN[2, 1] = torch.nan
FAULTS = {
    "shape": ({"3__weight": torch.ones(3, 7)}, "3.weight", [3, 7], "shape must be [3, 6]"),
    "missing": ({"3__bias": None}, "3.bias", None, "tensor required, of shape [3]"),
    "missing buffer": ({"1__running_var": None}, "1.running_var", None, "tensor required, of shape [6]"),
    "unknown": ({"4__weight": torch.ones(2, 5)}, "4.weight", [2, 5], "the model has no parameter or buffer"),
    "nan": ({"0__weight": NAN}, "0.weight", "nan at index [2, 1]", "every entry must be finite"),
    "overflow": (
        {"3__weight": torch.full((3, 6), 1e300, dtype=torch.float64)}, "3.weight", "1e+300 at index [0, 0]",
        "beyond the range of float32",
    ),
    "counter": (
        {"1__num_batches_tracked": torch.tensor(2.5)}, "1.num_batches_tracked", "float32", "dtype must be int64",
    ),
    "integers": ({"3__bias": torch.ones(3, dtype=torch.int32)}, "3.bias", "int32", "must be of real numbers"),
    "state shape": (
        {"optimizer__state__0__bias__exp_avg": torch.ones(5)}, "optimizer.state.0.bias.exp_avg", [5],
        "shape must be [6]",
    ),
    "state missing": (
        {"optimizer__state__0__bias__exp_avg": None}, "optimizer.state.0.bias.exp_avg", None,
        "tensor required, of shape [6]: the optimizer keeps step and exp_avg and exp_avg_sq",
    ),
    "state nan": (
        {"optimizer__state__0__weight__exp_avg": NAN}, "optimizer.state.0.weight.exp_avg", "nan at index [2, 1]",
        "every entry must be finite",
    ),
    "negative": (
        {"optimizer__state__0__bias__exp_avg_sq": -torch.ones(6)}, "optimizer.state.0.bias.exp_avg_sq", -1.0, "≥ 0",
    ),
    "state of none": (
        {"optimizer__state__5__bias__exp_avg": torch.ones(6)}, "optimizer.state.5.bias.exp_avg", [6],
        "the model has no parameter '5.bias'",
    ),
    "other kind": (
        {"optimizer__state__0__bias__momentum_buffer": torch.ones(6)}, "optimizer.state.0.bias.momentum_buffer", [6],
        "the optimizer keeps step and exp_avg and exp_avg_sq of this parameter",
    ),
    "unknown of the optimizer": ({"optimizer__lr": torch.ones(())}, "optimizer.lr", [], "only optimizer.state.<param"),
    "rate": (
        {"optimizer__param_groups__0__bias__lr": -torch.ones(())}, "optimizer.param_groups.0.bias.lr", -1.0, "≥ 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_every_fault_names_tensor_value_and_bound_and_changes_nothing(case, saved) -> None:
    model, optimizer, path = saved
    tensors, name, value, bound = FAULTS[case]
    changed(path, **tensors)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    asks = (
        lambda: load_checkpoint(path, model, optimizer),
        lambda: recommend(model, [batch()], blocks={"1": ["0"], "3": []}, optimizer="adamw", checkpoint=path),
    )
    for ask in asks:
        with pytest.raises(SpecError) as caught:
            ask()
        [fault] = caught.value.errors
        assert (fault.field, fault.value) == (f"checkpoint.{name}", value)
        assert bound in fault.bound
    assert same((model.state_dict(), optimizer.state_dict()), before)


def test_no_file_or_no_safetensors_file(tmp_path) -> None:
    with pytest.raises(SpecError, match="an existing file is required"):
        load_checkpoint(tmp_path / "none.safetensors", net())
    (tmp_path / "text.safetensors").write_text("not safetensors, but longer than eight bytes")
    with pytest.raises(SpecError, match="must be a safetensors file"):
        load_checkpoint(tmp_path / "text.safetensors", net())
    save_checkpoint(tmp_path / "cut.safetensors", net())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-4])
    with pytest.raises(SpecError, match="must be a safetensors file"):
        load_checkpoint(tmp_path / "cut.safetensors", net())


def test_the_state_of_another_optimizer_is_refused(saved) -> None:
    model, _, path = saved
    for other in (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        torch.optim.SGD(model.parameters(), lr=0.1),
    ):
        with pytest.raises(SpecError, match=r"the optimizer keeps (momentum_buffer|nothing) of this parameter"):
            load_checkpoint(path, model, other)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def a_part(model: nn.Sequential) -> nn.Module:
    model[3] = torch.compile(model[3], backend="eager")
    return model


@pytest.mark.parametrize("compiled", [lambda model: torch.compile(model, backend="eager"), a_part])
def test_a_compiled_model_has_the_names_that_it_has_before(compiled, saved, tmp_path) -> None:
    model, _, path = saved
    plain = {key: tensor.clone() for key, tensor in load_file(path).items()}
    save_checkpoint(tmp_path / "compiled.safetensors", compiled(copy.deepcopy(model)))
    weights = {key: tensor for key, tensor in plain.items() if not key.startswith("optimizer.")}
    assert same(load_file(tmp_path / "compiled.safetensors"), weights)
    fresh = compiled(net(1))
    state = torch.optim.AdamW(fresh.parameters(), lr=0.01)
    load_checkpoint(path, fresh, state)
    assert same([p.detach() for p in fresh.parameters()], [p.detach() for p in model.parameters()])
    save_checkpoint(tmp_path / "again.safetensors", fresh, state)
    assert same(load_file(tmp_path / "again.safetensors"), plain)
    reports = [
        recommend(m, [batch()], blocks={"1": ["0"], "3": []}, optimizer="adamw", checkpoint=path)
        for m in (net(1), torch.compile(net(1), backend="eager"))
    ]
    assert reports[0].recommendation.blocks == reports[1].recommendation.blocks
    changed(path, **{"3__bias": torch.ones(4)})
    with pytest.raises(SpecError) as caught:
        load_checkpoint(path, compiled(net(1)))
    assert [fault.field for fault in caught.value.errors] == ["checkpoint.3.bias"]


def test_what_is_no_tensor_is_refused(tmp_path) -> None:
    model, (inputs, targets) = net(), batch()
    optimizer = torch.optim.LBFGS(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ValueError, match=r"optimizer: what it keeps as '.*' is a list, which is no tensor"):
        save_checkpoint(tmp_path / "a.safetensors", model, optimizer)
    assert not list(tmp_path.iterdir())


def test_a_name_that_begins_as_the_optimizers_do_is_refused(tmp_path) -> None:
    model = nn.ModuleDict({"optimizer": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"'optimizer\.weight' begins with"):
        save_checkpoint(tmp_path / "a.safetensors", model)
