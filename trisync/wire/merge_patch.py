"""JSON Merge Patch (RFC 7396) on JSON text: what is not patched stays byte for byte as it was written.

Sans-IO. Only for JSON that decode_request() has passed, so that nesting is bounded.
"""

import msgspec
from msgspec import Raw

_members = msgspec.json.Decoder(dict[str, Raw]).decode
_NULL = b"null"


def merge_patch(target: bytes | None, patch: bytes) -> bytes:
    """The value that `patch` makes of `target` (None: there is none), by RFC 7396, section 2.

    A patch that is no object replaces the whole; null in an object removes a member; arrays are replaced.
    """
    if not patch.startswith(b"{"):
        return patch
    merged = _members(target) if target is not None and target.startswith(b"{") else {}
    for name, raw in _members(patch).items():
        value = bytes(raw)
        if value == _NULL:
            merged.pop(name, None)
        else:
            there = merged.get(name)
            merged[name] = Raw(merge_patch(None if there is None else bytes(there), value))
    return msgspec.json.encode(merged)
