"""Blocks of a module that were found by tracing it, to be looked at before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from featurespeed_workers.block_search import Found, search
from featurespeed_workers.eager import as_given_to_compile
from featurespeed_workers.network import check_module
from featurespeed_workers.passes import Batch, Inputs
from featurespeed_workers.tracing import BY_HAND, trace


@dataclass(frozen=True)
class Owned:
    """A submodule of a block, or a single parameter, with what it holds."""

    path: str
    count: int
    """Numbers in its parameters."""
    marks: tuple[str, ...]
    """Which of ``frozen``, ``tied`` (under several names) and ``unused`` holds for some of them."""


class FoundBlocks(Mapping[str, Sequence[str]]):
    """Block name → what it owns besides the module of that name, in forward order; prints as a tree with counts.

    Pass it as ``blocks=``, or ``dict(found)`` after changes of your own.
    """

    def __init__(
        self, model: nn.Module, extras: Mapping[str, Sequence[str]], owned: Mapping[str, Sequence[Owned]]
    ) -> None:
        self._title = f"{type(model).__name__}, {len(extras)} blocks"
        self._kinds = {block: type(model.get_submodule(block)).__name__ for block in extras}
        self._extras = dict(extras)
        self.owned = dict(owned)

    def __getitem__(self, block: str) -> Sequence[str]:
        """What the block owns besides its own module: paths of modules and parameters."""
        return self._extras[block]

    def __iter__(self) -> Iterator[str]:
        """Names in forward order."""
        return iter(self._extras)

    def __len__(self) -> int:
        return len(self._extras)

    def __str__(self) -> str:
        rows = [(self._title, sum(o.count for own in self.owned.values() for o in own), "parameters")]
        for i, (block, own) in enumerate(self.owned.items()):
            stem, below = ("└─ ", "   ") if i == len(self.owned) - 1 else ("├─ ", "│  ")
            alone = len(own) == 1 and own[0].path == block
            marks = ", ".join(own[0].marks) if alone else ""
            rows.append((f"{stem}{block} ({self._kinds[block]})", sum(o.count for o in own), marks))
            for j, o in enumerate([] if alone else own):
                branch = "└─ " if j == len(own) - 1 else "├─ "
                rows.append((f"{below}{branch}{o.path}", o.count, ", ".join(o.marks)))
        wide, digits = max(len(r[0]) for r in rows), max(len(f"{r[1]:,}") for r in rows)
        return "\n".join(f"{text:{wide}}  {count:>{digits},}  {marks}".rstrip() for text, count, marks in rows)

    __repr__ = __str__


def blocks(model: nn.Module, batch: Batch | Inputs) -> FoundBlocks:
    """Find the cut nodes of ``model``, hence its blocks: ``print(blocks(model, batch))`` before anything is measured.

    ``batch``: (inputs, targets) or inputs alone, a tensor or keyword arguments by name; only shapes and dtypes count.
    The model is traced by ``torch.export`` with fake tensors (no memory, no computation; the meta device will do) and
    nothing of it changes. A cut node is a feature through which every path from an input to the output passes (paper,
    Eq. 1); of these the outputs of submodules are taken, one a residual block, or one a linear map in a plain chain:
    see ``block_search.py`` for the rule. A parameter belongs to the block in which it acts, one that acts nowhere to
    the nearest module's. All real outputs count as used by the loss. Integers and booleans carry no signal: a mask may
    reach every layer.

    Raises ValueError if the model cannot be traced or has less than two blocks, saying why.
    """
    model = as_given_to_compile(model)
    check_module(model)
    found = search(
        trace(model, batch[0] if isinstance(batch, tuple | list) else batch),
        [name for name, p in model.named_parameters() if p.requires_grad],
        _layers(model),
    )
    _check(found)
    own: dict[str, set[str]] = {}
    for c in found.cut_nodes:  # a frozen parameter may act in several blocks and belongs to the first
        own[c.names[0]] = set(c.parameters).difference(*own.values())
    used = found.used
    paths = _paths(model)
    for name in paths:
        if name not in used:
            own[_nearest(name, list(own))].add(name)
    extras = {block: _extras(block, names, paths, list(own)) for block, names in own.items()}
    owned = {
        block: _owned(model, block, extras[block], {n: p for n, p in paths.items() if n in names}, used)
        for block, names in own.items()
    }
    return FoundBlocks(model, extras, owned)


def _check(found: Found) -> None:
    if not found.used:
        raise ValueError("blocks: no parameter lies between the input and the output")
    if len(found.cut_nodes) < 2:
        why = f"every path from the input to the output passes through the outputs of too few submodules; {BY_HAND}"
        if found.tied:
            why = f"parameter {found.tied[0]!r} acts on both sides of every other cut node (a tied weight); {UNTIE}"
        raise ValueError(f"blocks: at least 2 are needed, found {len(found.cut_nodes)}: {why}")
    if found.behind:
        last = found.cut_nodes[-1].names[0]
        raise ValueError(
            f"blocks: parameter {found.behind[0]!r} acts after {last!r}, the last submodule whose output is a cut "
            "node; put it into a submodule"
        )


UNTIE = "untie them, as by head.weight = nn.Parameter(embedding.weight.detach().clone())"


def _layers(model: nn.Module) -> dict[str, str]:
    """Path of each module within an element of a ``ModuleList`` → that element; not across a ``Sequential`` between."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():  # from the outside in
        if isinstance(module, nn.ModuleList | nn.Sequential):
            listed = isinstance(module, nn.ModuleList)
            for element in (f"{path}.{name}".lstrip(".") for name, _ in module.named_children()):
                found[element] = element if listed else ""
        elif path not in found:
            found[path] = found.get(path.rpartition(".")[0], "")
    return {path: layer for path, layer in found.items() if layer}


def _paths(model: nn.Module) -> dict[str, list[str]]:
    """Name of each parameter, as in ``named_parameters()`` → all its paths, tied ones included."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for path, p in model.named_parameters(remove_duplicate=False):
        found[names[id(p)]].append(path)
    return found


def _nearest(name: str, block_names: Sequence[str]) -> str:
    """The block that has most levels of modules in common with a parameter; of several the last."""

    def common(block: str) -> int:
        return sum(1 for i in range(1, name.count(".") + 2) if _inside(block, ".".join(name.split(".")[:i])))

    return max(reversed(block_names), key=common)


def _inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def _extras(
    block: str, names: set[str], paths: Mapping[str, Sequence[str]], block_names: Sequence[str]
) -> tuple[str, ...]:
    """The fewest modules and parameters that hold these parameters and no others, the blocks' own modules left out."""
    mine = [path for name, own in paths.items() if name in names for path in own]
    others = [path for name, own in paths.items() if name not in names for path in own]
    found: dict[str, None] = {}
    for path in mine:
        if any(_inside(path, other) for other in block_names):
            continue
        parts = path.split(".")
        prefixes = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
        found[next(p for p in prefixes if p == path or not any(_inside(x, p) for x in [*others, *block_names]))] = None
    return tuple(found)


def _owned(
    model: nn.Module, block: str, extras: Sequence[str], paths: Mapping[str, Sequence[str]], used: frozenset[str]
) -> tuple[Owned, ...]:
    """Parameters by submodule: what the block owns besides its own module, then the children of that."""
    parameters = dict(model.named_parameters())
    grouped: dict[str, list[str]] = {}
    for name in paths:
        grouped.setdefault(_holder(name, block, extras), []).append(name)
    marks: dict[str, Callable[[str], bool]] = {
        "frozen": lambda name: not parameters[name].requires_grad,
        "tied": lambda name: len(paths[name]) > 1,
        "unused": lambda name: name not in used,
    }
    return tuple(
        Owned(
            path,
            sum(parameters[name].numel() for name in names),
            tuple(mark for mark, holds in marks.items() if any(holds(name) for name in names)),
        )
        for path, names in grouped.items()
    )


def _holder(name: str, block: str, extras: Sequence[str]) -> str:
    for extra in extras:
        if _inside(name, extra):
            return extra
    first, _, deeper = name.removeprefix(f"{block}.").partition(".")
    return f"{block}.{first}" if deeper else block
