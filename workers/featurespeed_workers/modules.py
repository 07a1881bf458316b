"""A user's own ``nn.Module`` as a network: which submodules are the blocks, and what SP rescales in each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn

from featurespeed_workers import sharded
from featurespeed_workers.eager import as_given_to_compile
from featurespeed_workers.found_blocks import UNTIE
from featurespeed_workers.found_blocks import blocks as found_blocks
from featurespeed_workers.network import Block, Fallback, Network, Scalable, check_module
from featurespeed_workers.passes import Inputs

Blocks = Sequence[str] | Mapping[str, Sequence[str]]


def network_of(
    module: nn.Module,
    blocks: Blocks | None = None,
    branches: Mapping[str, Sequence[str]] | None = None,
    *,
    inputs: Inputs | None = None,
) -> Network:
    """Cut ``module`` into blocks.

    ``blocks`` names, in forward order, the submodules whose outputs are the cut nodes: features through which the whole
    signal passes. A mapping adds to each the modules or parameters that belong to its block besides its own, as in
    ``{"dropout": ["tokens", "positions"], "layers.0": [], "head": ["final_norm"]}``. Unless given, they are those that
    :func:`featurespeed_workers.blocks` finds for ``inputs``, and without inputs the children that have parameters.

    ``branches`` names, for a residual block, the last linear layer of every branch; these are rescaled so that all
    branches together add a mean square of 1 to the residual stream. Of any other block all matrices are rescaled
    together, frozen ones never. Raises ValueError for unknown modules, for parameters that are in no block or in two,
    and for modules that change their own weights when called. Of a compiled module the network is that which was given
    to ``torch.compile``, and its parameters have the names that they have there.
    """
    module = as_given_to_compile(module)
    check_module(module)
    mesh = sharded.mesh_of(module)
    if not any(True for _ in module.parameters()):
        raise ValueError("model: has no parameters: there is nothing to initialize or to train")
    if blocks is None and inputs is not None:
        blocks = found_blocks(module, inputs)
    chosen = _owned(module, blocks)
    branches = dict(branches or {})
    for name in [*chosen, *(n for names in branches.values() for n in names)]:
        if name not in dict(module.named_modules()):
            raise ValueError(f"blocks: the module has no submodule {name!r}")
    if unknown := set(branches) - set(chosen):
        raise ValueError(f"branches: {sorted(unknown)[0]!r} is not one of the blocks")
    if len(chosen) < 2:
        raise ValueError(f"blocks: at least 2 are needed, got {len(chosen)}")
    parameters = _partition(module, chosen)
    target = 1 / math.sqrt(max(1, sum(len(names) for names in branches.values())))
    matrices = {name for name, p in module.named_parameters() if p.ndim > 1 and p.requires_grad}
    return Network(
        module,
        tuple(
            Block(name, name, tuple(parameters[name]), _scalables(name, parameters[name], matrices, branches, target))
            for name in chosen
        ),
        fallback=Fallback() if mesh is None else Fallback("central_difference", sharded.REASON, settled=True),
        mesh=mesh,
    )


def _owned(module: nn.Module, blocks: Blocks | None) -> dict[str, list[str]]:
    """Block name → prefixes of the modules and parameters that it owns."""
    if blocks is None:
        return {name: [name] for name, child in module.named_children() if any(True for _ in child.parameters())}
    extra = blocks if isinstance(blocks, Mapping) else dict.fromkeys(blocks, ())
    return {name: [name, *more] for name, more in extra.items()}


def _partition(module: nn.Module, owned: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Block name → its parameters; every parameter must be in exactly one block."""
    owners: dict[int, tuple[str, str]] = {}
    parameters: dict[str, list[str]] = {name: [] for name in owned}
    first_names = {id(p): name for name, p in module.named_parameters()}
    for path, p in module.named_parameters(remove_duplicate=False):
        homes = [b for b, prefixes in owned.items() if any(path == x or path.startswith(f"{x}.") for x in prefixes)]
        if len(homes) != 1:
            where = f"in blocks {' and '.join(homes)}" if homes else "in no block"
            raise ValueError(f"blocks: parameter {path!r} is {where}; it must be in exactly one")
        if id(p) in owners:
            other, block = owners[id(p)]
            if block != homes[0] and p.requires_grad:  # one that is frozen belongs to the first
                raise ValueError(f"blocks: parameter {path!r} is tied to {other!r} of block {block!r}; {UNTIE}")
            continue
        owners[id(p)] = (path, homes[0])
        parameters[homes[0]].append(first_names[id(p)])
    return parameters


def _scalables(
    block: str, own: Sequence[str], matrices: set[str], branches: Mapping[str, Sequence[str]], target: float
) -> tuple[Scalable, ...]:
    if block in branches:
        return tuple(
            Scalable(module, tuple(n for n in own if n in matrices and n.startswith(f"{module}.")), target)
            for module in branches[block]
        )
    together = tuple(n for n in own if n in matrices)
    return (Scalable(block, together),) if together else ()
