"""Make characters.safetensors, the text of the character transformer (transformer.yaml), beside this script.

The text is the source code of Python's own standard library, so nothing is downloaded; the same Python gives the same
file. A character is a token: newline is 0, the printable ASCII characters follow (space is 1, ``~`` is 95), all others
are left out. The text is cut into pieces of 64 characters; the target of a position is the character that comes next.

    python examples/make_characters.py [FILE]
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

CONTEXT_LENGTH = 64
PIECES = 32_768
VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))  # 96 characters


def source_text(characters: int) -> str:
    """The first ``characters`` characters of the standard library's modules, in the order of their names."""
    text, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        kept = "".join(filter(set(VOCABULARY).__contains__, path.read_text(encoding="utf-8", errors="ignore")))
        text.append(kept)
        size += len(kept)
        if size >= characters:
            return "".join(text)[:characters]
    raise SystemExit(f"the standard library's sources have {size} characters, {characters} are needed")


def tokens_of(text: str) -> NDArray[np.uint8]:
    """The number of each character in the vocabulary."""
    number = {character: i for i, character in enumerate(VOCABULARY)}
    return np.array([number[character] for character in text], dtype=np.uint8)


def main(path: Path) -> None:
    """Write inputs and targets, both (pieces, 64) uint8."""
    tokens = tokens_of(source_text(PIECES * CONTEXT_LENGTH + 1))
    inputs = tokens[:-1].reshape(PIECES, CONTEXT_LENGTH)
    targets = tokens[1:].reshape(PIECES, CONTEXT_LENGTH)
    # copies: safetensors writes a view's memory from its beginning
    save_file({"inputs": inputs.copy(), "targets": targets.copy()}, path)
    print(f"{path}: {PIECES} pieces of {CONTEXT_LENGTH} characters", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("characters.safetensors"))
