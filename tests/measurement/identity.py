"""Whether something stayed as it was."""

from torch import Tensor


def same(a: object, b: object) -> bool:
    """Whether two nested values are equal to the bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.equal(b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
