"""Rules that need no measurement: PyTorch's defaults, Table 1 of the paper, and µP."""

from __future__ import annotations

from torch import Tensor

from featurespeed.contract import JobRequest, is_selected, lookup
from featurespeed.defaults import PYTORCH_LEARNING_RATE
from featurespeed_workers.network import Network
from featurespeed_workers.rules.mup import mup_rates, mup_stds
from featurespeed_workers.rules.scaling import BlockScaling
from featurespeed_workers.rules.table import table1_of


def closed_form(request: JobRequest, network: Network, parameters: dict[str, Tensor]) -> BlockScaling:
    """The scaling of rule ``ntk``, ``mf_mup``, ``mup`` or ``pytorch_default``, for parameters already drawn by it."""
    names = [block.name for block in network.blocks]
    stds: dict[str, float] = {}
    if request.rule == "pytorch_default":
        rates, master_lr = dict.fromkeys(names, 1.0), PYTORCH_LEARNING_RATE
    elif request.rule == "mup":
        rates, stds, master_lr = mup_rates(request, network), mup_stds(request, network), PYTORCH_LEARNING_RATE
    else:
        table = table1_of(request)
        rates = {name: lookup(name, table.rate) or 0.0 for name in names}
        stds, master_lr = {name: lookup(name, table.std) or 0.0 for name in names}, 1.0
    frozen = {x for b in network.blocks if is_selected(b.name, request.frozen) for x in (b.name, *b.parameters)}
    trained = {name: 0.0 if name in frozen else rate for name, rate in rates.items()}
    return BlockScaling(parameters, trained, master_lr, None, stds=stds)
