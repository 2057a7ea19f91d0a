"""RFC 7396 from its own examples, and what stays as it was written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.merge_patches import DOCUMENT, EXAMPLES, PATCH, RESULT, by_the_rfc
from trisync.wire.merge_patch import merge_patch


@pytest.mark.parametrize(("target", "patch", "result"), [*EXAMPLES, (DOCUMENT, PATCH, RESULT)])
def test_the_examples_of_the_rfc(target: str, patch: str, result: str) -> None:
    assert json.loads(merge_patch(target.encode(), patch.encode())) == json.loads(result)


def test_what_is_not_there_yet_is_made() -> None:
    assert merge_patch(None, b'{"a":{"b":1,"c":null}}') == b'{"a":{"b":1}}'


def test_what_is_not_patched_stays_byte_for_byte() -> None:
    target = b'{"big":123456789012345678901234567890,"exact":1.50,"text":"\\u00e9","old":1}'
    assert merge_patch(target, b'{"old":null}') == target.replace(b',"old":1', b"")


def test_blanks_between_tokens_mean_nothing() -> None:
    assert merge_patch(b'{ "a" : { "b" : 1 } }', b'{ "a" : { "c" : null , "d" : 2 } }') == b'{"a":{"b":1,"d":2}}'


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(values, values)
def test_any_patch_of_any_value_is_as_the_pseudocode_has_it(target: Any, patch: Any) -> None:
    merged = json.loads(merge_patch(json.dumps(target).encode(), json.dumps(patch).encode()))
    assert merged == by_the_rfc(target, patch)
