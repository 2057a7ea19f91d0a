"""How deep JSON is nested: as one who builds the value finds it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trisync.wire.nesting import is_deeper_than, nesting

texts = st.text(alphabet='[]{}"\\ a', max_size=6)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=40,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@settings(deadline=None, max_examples=500)
@given(values)
def test_nesting_is_the_depth_of_the_value(value: Any) -> None:
    text = json.dumps(value).encode()
    assert nesting(text) == depth(value)
    for limit in range(5):
        assert is_deeper_than(text, limit) == (depth(value) > limit)


@pytest.mark.parametrize("levels", [1, 2, 3, 64, 65, 1000])
def test_a_nest_among_others_is_as_deep_as_the_deepest(levels: int) -> None:
    nest = b"[" * levels + b"]" * levels
    assert nesting(nest) == levels
    assert nesting(b"[[]," + nest + b',{"a":[]}]') == 1 + max(2, levels)
