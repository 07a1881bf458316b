"""Blocks by name and by group."""

from __future__ import annotations

from collections.abc import Collection


def group_of(block: str) -> str:
    """The group of a block: ``input``, ``hidden`` or ``output``."""
    return block if block in ("input", "output") else "hidden"


def is_selected(block: str, names: Collection[str]) -> bool:
    """Whether ``names`` lists the block or its group."""
    return block in names or group_of(block) in names


def lookup(block: str, values: dict[str, float]) -> float | None:
    """The value for a block: its own, else its group's, else none."""
    return values.get(block, values.get(group_of(block)))
