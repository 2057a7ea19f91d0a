"""How deep JSON is nested, without a step of Python for each bracket: there may be hundreds of thousands. Sans-IO."""

from itertools import accumulate

_AS_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_PEELED = 2
"""Levels that are taken off the inside at first: most JSON has no more brackets then, and adding up is slower."""
_STEPS = bytes.maketrans(b"[]", b"\x01\xff")
"""Up and down, as signed bytes."""


def is_deeper_than(payload: bytes, limit: int) -> bool:
    """Whether JSON that is known to be well-formed is nested deeper."""
    return payload.count(b"[") + payload.count(b"{") > limit and nesting(payload) > limit


def nesting(payload: bytes) -> int:
    """How many levels deep JSON that is known to be well-formed is nested."""
    if b"\\" in payload:
        payload = payload.replace(b"\\\\", b"").replace(b'\\"', b"")  # every other quote begins or ends a string
    left = payload.translate(_AS_SQUARE, _NO_STRUCTURE).replace(b'""', b"")
    if b'"' in left:  # around brackets in strings
        left = b"".join(left.split(b'"')[::2])
    for level in range(_PEELED):
        if not left:
            return level
        left = left.replace(b"[]", b"")  # the innermost level
    return _PEELED + max(accumulate(memoryview(left.translate(_STEPS)).cast("b")), default=0)
