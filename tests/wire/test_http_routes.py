"""What a request to the HTTP interface asks for, without a socket."""

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trisync.wire.errors import WireError
from trisync.wire.http_answers import STATUSES, HttpError
from trisync.wire.http_routes import (
    METHODS,
    ROOT,
    Condition,
    Resource,
    find_resource,
    idempotency_key,
    is_expected,
    is_for_api,
    is_known,
    last_event_id,
    read_call,
    read_condition,
)


def refusal(function: Any, *args: Any) -> int:
    """The status that something is refused with."""
    with pytest.raises(WireError) as refused:
        function(*args)
    return STATUSES[refused.value.code]


@pytest.mark.parametrize(
    ("target", "lies_in_it"),
    [
        (b"/channels", True),
        (b"/channels?limit=1", True),
        (b"/channels/", True),
        (b"/channels/a/messages", True),
        (b"/", False),
        (b"/channel", False),
        (b"/channels.js", False),
        (b"/x?/channels/", False),
        (b"*", False),
    ],
)
def test_the_interface_lies_under_one_path(target: bytes, lies_in_it: bool) -> None:
    assert is_for_api(target) is lies_in_it


@given(channel=st.text(min_size=1), key=st.text(min_size=1))
def test_any_name_can_be_written_in_a_path(channel: str, key: str) -> None:
    for resource in Resource:
        path = resource.value.format(channel=quote(channel, safe=""), key=quote(key, safe=""))
        found = find_resource(path.encode())
        assert found[0] is resource
        assert found[1] == (channel if "{channel}" in resource.value else "")
        assert found[2] == (key if "{key}" in resource.value else None)


def test_a_slash_behind_the_list_makes_it_no_channel() -> None:
    assert find_resource(b"/channels/?limit=1") == find_resource(b"/channels") == (Resource.CHANNELS, "", None)


@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "BREW"]),
    st.lists(
        st.sampled_from(
            [b"/", b"a", b"messages", b"state", b"events", b"?", b"&", b"=", b"since", b"%", b"%ff", b"+", b"1"]
        )
    ),
)
def test_whatever_the_target_it_is_a_call_or_refused(method: str, pieces: list[bytes]) -> None:
    call, status = None, 0
    try:
        call = read_call(method.encode(), ROOT + b"/" + b"".join(pieces), [])
    except HttpError as refused:
        status = refused.answer.status
    except WireError as refused:
        status = STATUSES[refused.code]
    if call is None:
        assert status in (400, 404, 405)
    else:
        assert set(call.query) <= set(METHODS[call.resource][call.method])


def test_parameters_come_as_the_fields_that_they_are() -> None:
    target = b"/channels/doc/messages?key=a%2Bb+c&expect=007&merge=true&ephemeral=false&name=%C3%A9"
    assert read_call(b"POST", target, []).query == {
        "key": "a+b c",
        "expect": 7,
        "merge": True,
        "ephemeral": False,
        "name": "é",
    }


@pytest.mark.parametrize("number", ["", "-1", "1.5", "0x1", "9" * 17, "%C2%B2", "%D9%A3"])
def test_a_number_is_up_to_16_digits_of_ascii(number: str) -> None:
    with pytest.raises(WireError) as refused:
        read_call(b"GET", f"/channels/a/messages?since={number}".encode(), [])
    assert refused.value.message == "since is a number"


def test_who_names_an_unknown_parameter_is_told_which_there_are() -> None:
    for method, target, told in (
        (b"GET", b"/channels/a/messages?last=1", "'last' is no parameter here: there are since, limit"),
        (b"DELETE", b"/channels/a?last=1", "'last' is no parameter here: there are none"),
    ):
        with pytest.raises(WireError) as refused:
            read_call(method, target, [])
        assert refused.value.message == told


@pytest.mark.parametrize(
    ("headers", "asks"),
    [
        ([], None),
        ([(b"if-match", b'"7"')], 7),
        ([(b"if-match", b'"0"')], 0),
        ([(b"if-match", b"*")], Condition.EXISTS),
        ([(b"if-none-match", b"*")], 0),
    ],
)
def test_conditions_are_offsets(headers: list[tuple[bytes, bytes]], asks: int | Condition | None) -> None:
    assert read_condition(headers) == asks


@pytest.mark.parametrize(
    "etag", [b"7", b'W/"7"', b'"7', b'"7", "8"', b'"-7"', b'"7x"', b'""', b'"' + b"7" * 17 + b'"', b""]
)
def test_what_is_no_etag_of_ours_is_no_condition_on_a_write(etag: bytes) -> None:
    assert refusal(read_condition, [(b"if-match", etag)]) == 400
    assert refusal(read_condition, [(b"if-none-match", etag)]) == 400


def test_what_a_client_expects_is_told_by_any_of_its_etags_but_no_weak_one() -> None:
    for expected in (b'"7"', b'"6", "7"', b"*"):
        assert is_expected([(b"if-match", expected)], 7)
    for other in (b'W/"7"', b'"8"', b"7", b""):
        assert not is_expected([(b"if-match", other)], 7)
    assert is_expected([], 7)


def test_what_a_client_has_already_is_told_by_any_of_its_etags() -> None:
    for known in (b'"7"', b'W/"7"', b'"6", "7"', b"*"):
        assert is_known([(b"if-none-match", known)], 7)
    for other in (b'"8"', b'"77"', b"7", b""):
        assert not is_known([(b"if-none-match", other)], 7)
    assert not is_known([], 7)


def test_last_event_id_is_an_offset_perhaps_with_an_epoch_or_absent() -> None:
    assert last_event_id([]) == {}
    assert last_event_id([(b"last-event-id", b"")]) == {}
    assert last_event_id([(b"last-event-id", b"12")]) == {"since": 12}
    assert last_event_id([(b"last-event-id", b"12@5e70")]) == {"since": 12, "epoch": "5e70"}
    for value in (b"x", b"@5e70", b"x@5e70", b"-1", b"1 2", b"1.0", "²".encode(), b"\xb2"):
        assert refusal(last_event_id, [(b"last-event-id", value)]) == 400


def test_an_idempotency_key_is_opaque() -> None:
    assert idempotency_key([]) is None
    assert idempotency_key([(b"idempotency-key", b'"a-b"')]) == b'"a-b"'
    assert refusal(idempotency_key, [(b"idempotency-key", b"a"), (b"idempotency-key", b"b")]) == 400
