"""What a specification's JSON is refused for before it is compared with the contract.

Readers of JSON silently take the last of two equal keys, and may take long over, or remember much of, what is no
specification at all.
"""

from __future__ import annotations

import json
from typing import Any

from featurespeed.contract.base import MAX_BLOCKS

MOST_VALUES = 33_000
"""Values in one specification, counted by commas; the largest, a graph of 4,096 layers, has about 8 a layer."""
MOST_KEYS = MAX_BLOCKS + 1
LONGEST_PATH = 200


class DuplicateKey(ValueError):
    """An object has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__("a key is given twice")
        self.key = key


class JsonFault(ValueError):
    """Text that is no specification, whatever its fields say; ``field`` is a path."""

    def __init__(self, field: str, value: Any, bound: str) -> None:
        super().__init__(bound)
        self.field, self.value = field, value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for ``json.loads(…, object_pairs_hook=unique_keys)``; raises DuplicateKey."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKey(key)
            seen.add(key)
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_KEYS:
        raise JsonFault("body", f"{len(pairs):,} keys", f"an object has at most {MOST_KEYS:,} keys")
    return unique_keys(pairs)


def check_json(text: str | bytes) -> None:
    """Raise JsonFault for too many values, a key given twice, or half a surrogate pair; others are not sought."""
    commas, escape = (text.count(","), "\\u" in text) if isinstance(text, str) else (text.count(b","), b"\\u" in text)
    if commas >= MOST_VALUES:
        raise JsonFault("body", f"{commas:,} commas", f"a specification has at most {MOST_VALUES:,} values")
    try:
        document = json.loads(text, object_pairs_hook=_object)
        if escape:
            _check_text(document, ())
    except (DuplicateKey, JsonFault) as fault:
        raise fault if isinstance(fault, JsonFault) else JsonFault("body", fault.key, str(fault)) from None
    except (ValueError, RecursionError):
        return  # no JSON: what reads it next says where


def _check_text(value: Any, path: tuple[str, ...]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key, path)
            _check_text(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check_text(inner, (*path, str(i)))
    elif isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        shown = value[:50].encode("ascii", "backslashreplace").decode()
        raise JsonFault(
            ".".join(path)[:LONGEST_PATH] or "body", shown, "must be Unicode text, without half a surrogate pair"
        )
