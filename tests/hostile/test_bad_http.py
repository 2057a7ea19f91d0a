"""The web door: requests that are no HTTP, slow, huge or for nothing; hosts and origins; broken upgrades."""

import json
import re
import time
from email.utils import parsedate_to_datetime
from itertools import pairwise, product

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.harness import read_until
from tests.hostile.arena import MIB, Undisturbed, memory_bounded
from tests.hostile.memory_doors import exchange, memory_doors
from tests.hostile.raw_peers import UPGRADE

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def request(line: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([line + b" HTTP/1.1", *headers, b"", b""])


GARBAGE = {
    "a line of JSON": b'{"op":"ping"}\n\r\n\r\n',
    "an opening of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "zeros": bytes(200) + b"\r\n\r\n",
    "telnet": b"\xff\xfd\x01\xff\xfb\x1f\r\n\r\n",
    "a WebSocket frame": b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2.0": b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "HTTP/9.9": b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "HTTP/1.2": b"GET /health HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "no version": b"GET / HTTP\r\nHost: localhost\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a control character in the target": b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "a NUL in a header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length and a transfer coding": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "a length that is none": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "a long line of nothing": b"\xab\x00" * 5000 + b"\r\n\r\n",
    "half a request": b"GET / HTTP/1.1\r\nHost: loc",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_what_is_not_http_gets_400(undisturbed: Undisturbed, garbage: bytes) -> None:
    async with undisturbed() as arena, arena.web() as peer:
        await peer.send_raw(garbage)
        await peer.stream.send_eof()
        await peer.refused_with(400)


async def test_a_transfer_coding_unknown_gets_501(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.web() as peer:
        await peer.send_raw(request(b"POST /", b"Host: localhost", b"Transfer-Encoding: gzip"))
        await peer.refused_with(501)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (request(b"GET /", b"Host: localhost", b"Host : x"), b"'Host : x'\n"),
        (request(b"GET /\x00", b"Host: localhost"), b"'GET /\\x00 HTTP/1.1'\n"),
    ],
    ids=["header", "line"],
)
async def test_what_is_not_http_is_shown_without_words_of_python(
    undisturbed: Undisturbed, wrong: bytes, told: bytes
) -> None:
    async with undisturbed() as arena, arena.web() as peer:
        await peer.send_raw(wrong)
        response = await peer.get_response()
        assert response.body.endswith(told), response
        assert b"bytearray" not in response.body


@pytest.mark.parametrize("host", [b"", b"a b", b"user@localhost", b"localhost:http", b"[::1", b"[::1]x", b"\xe4", b"/"])
async def test_a_malformed_host_gets_400(undisturbed: Undisturbed, host: bytes) -> None:
    async with undisturbed() as arena, arena.web() as peer:
        await peer.send_raw(request(b"GET /", b"Host: " + host))
        await peer.refused_with(400)


FOREIGN_HOSTS = [
    b"evil.example",
    b"evil.example:8000",
    b"127.0.0.1.evil.example",
    b"localhost.evil.example",
    b"8.8.8.8",
]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
async def test_a_foreign_host_gets_421_on_a_loopback_address(undisturbed: Undisturbed, host: bytes) -> None:
    async with undisturbed(log_lines=3) as arena:
        for path in (b"/", b"/health", b"/nowhere"):
            async with arena.web() as peer:
                await peer.send_raw(request(b"GET " + path, b"Host: " + host))
                await peer.refused_with(421)


async def test_a_target_that_is_a_whole_uri_is_judged_by_its_own_host(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=2) as arena, arena.web() as peer:
        for path in (b"/health", b"/channels", b"", b"?a=b"):
            await peer.send_raw(request(b"GET http://localhost:8000" + path, b"Host: evil.example"))
            assert (await peer.get_response()).status == 200
        upgrade = UPGRADE.replace(b"GET /", b"GET http://evil.example/")
        for asked in (request(b"GET http://evil.example/health", b"Host: localhost"), upgrade):
            async with arena.web() as other:
                await other.send_raw(asked)
                await other.refused_with(421)
        await peer.send_raw(UPGRADE.replace(b"GET /", b"GET http://localhost/"))
        assert (await peer.get_response()).status == 101


async def test_a_foreign_host_gets_421_for_an_upgrade_too(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.web() as peer:
        await peer.send_raw(UPGRADE.replace(b"localhost", b"evil.example"))
        await peer.refused_with(421)


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:80", b"app.localhost:8000", b"127.0.0.1", b"127.9.9.9:1", b"[::1]:8000"]
)
async def test_this_machines_own_names_are_no_foreign_hosts(undisturbed: Undisturbed, host: bytes) -> None:
    async with undisturbed(log_lines=0) as arena, arena.web() as peer:
        await peer.send_raw(request(b"GET /health", b"Host: " + host))
        assert (await peer.get_response()).status == 200


async def test_a_server_on_a_public_address_is_called_by_any_name(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0, host="0.0.0.0") as arena, arena.web() as peer:
        await peer.send_raw(request(b"GET /health", b"Host: trisync.example"))
        assert (await peer.get_response()).status == 200


FOREIGN_ORIGINS = [
    b"https://evil.example",
    b"null",
    b"http://localhost:1",
    b"http://localhost.evil.example",
    b"http://evil.example/localhost",
    b"file://",
    b"",
    b"*",
    b"https://app.example.evil.example",
]


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
async def test_a_foreign_origin_may_neither_upgrade_nor_write(undisturbed: Undisturbed, origin: bytes) -> None:
    async with undisturbed(log_lines=2, origins=["https://app.example"]) as arena:
        for start in (UPGRADE[:-2], request(b"POST /", b"Host: localhost")[:-2]):
            async with arena.web() as peer:
                await peer.send_raw(start + b"Origin: " + origin + b"\r\n\r\n")
                await peer.refused_with(403)


async def test_its_own_origin_and_those_in_the_setting_may_upgrade(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0, origins=["https://app.example"]) as arena:
        for origin in (b"http://localhost", b"https://localhost", b"HTTP://LOCALHOST", b"https://app.example"):
            async with arena.web() as peer:
                await peer.send_raw(UPGRADE[:-2] + b"Origin: " + origin + b"\r\n\r\n")
                assert (await peer.get_response()).status == 101, origin


async def test_a_foreign_origin_may_read_as_links_do(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.web() as peer:
        await peer.send_raw(request(b"GET /", b"Host: localhost", b"Origin: https://evil.example"))
        response = await peer.get_response()
        assert response.status == 200
        assert "access-control-allow-origin" not in response.headers


# Requests that are HTTP


async def test_a_plain_get_is_the_page_and_head_is_its_head(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0) as arena, arena.web() as peer:
        await peer.send_raw(GET)
        page = await peer.get_response()
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        await peer.send_raw(GET.replace(b"GET", b"HEAD"))
        head = await peer.get_response(to_head=True)
        assert (head.status, head.headers["content-length"]) == (200, str(len(page.body)))
        await peer.send_raw(GET)  # so nothing followed the head
        assert (await peer.get_response()).body == page.body


async def test_an_empty_line_before_a_request_is_ignored(undisturbed: Undisturbed) -> None:
    health = request(b"GET /health", b"Host: localhost")
    post = request(b"POST /channels/c/messages", b"Host: localhost", b"Content-Length: 1") + b"1"
    async with undisturbed(log_lines=0) as arena, arena.web() as peer:
        await peer.send_raw(b"\r\n")
        await wait_all_tasks_blocked(0.01)
        for piece in (health + b"\r\n" + health, b"\r\n" + health, post + b"\r\n" + post + b"\r\n", b"\r\n"):
            await peer.send_raw(piece)
            for _ in range(piece.count(b"HTTP/1.1")):
                assert (await peer.get_response()).status in (200, 201)
        await peer.send_raw(UPGRADE)
        assert (await peer.get_response()).status == 101


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n"])
async def test_empty_lines_before_a_request_are_ignored_however_they_are_cut(blank: bytes) -> None:
    asked = 2 * (blank + request(b"GET /health", b"Host: localhost"))
    async with memory_doors() as doors:
        for cut in range(1, len(asked)):
            said = await exchange(doors.connect("web"), [asked[:cut], asked[cut:]])
            assert said.count(b"HTTP/1.1 200 ") == said.count(b"HTTP/1.1 ") == 2


@pytest.mark.parametrize("host", [b"Host: localhost\r\n", b""], ids=["a host", "none, as HAProxy's checks"])
async def test_http_1_0_is_served_a_request_a_connection(undisturbed: Undisturbed, host: bytes) -> None:
    async with undisturbed(log_lines=0) as arena, arena.web() as peer:
        await peer.send_raw(b"GET /health HTTP/1.0\r\n" + host + b"\r\n")
        assert (await peer.get_response()).status == 200
        assert await peer.receive_rest() == b""


async def test_every_response_has_a_date(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=2) as arena:
        begun_s = int(time.time())
        for line, status in (
            (b"GET /", 200),
            (b"GET /health", 200),
            (b"GET /nowhere", 404),
            (b"GET /channels", 200),
            (b"GET /channels/c/state/k", 404),
            (b"GET /channels/c/events", 200),
            (b"OPTIONS /channels", 204),
            (b"BREW /channels", 405),
        ):
            async with arena.web() as peer:
                await peer.send_raw(request(line, b"Host: localhost"))
                head = (await read_until(peer.stream, b"\r\n\r\n")).decode()
                assert head.startswith(f"HTTP/1.1 {status} ")
                told = re.search("\r\nDate: (.* GMT)\r\n", head)
                assert told is not None
                assert begun_s <= parsedate_to_datetime(told[1]).timestamp() <= time.time()


@pytest.mark.parametrize("path", [b"/nowhere", b"/../pyproject.toml", b"/index.html/", b"//", b"/%2e%2e/", b"*"])
async def test_an_unknown_path_gets_404(undisturbed: Undisturbed, path: bytes) -> None:
    async with undisturbed() as arena, arena.web() as peer:
        await peer.send_raw(request(b"GET " + path, b"Host: localhost"))
        await peer.refused_with(404)


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"BREW"])
async def test_what_can_only_be_read_gets_405(undisturbed: Undisturbed, method: bytes) -> None:
    async with undisturbed(log_lines=2) as arena:
        for path in (b" /", b" /health"):
            async with arena.web() as peer:
                await peer.send_raw(request(method + path, b"Host: localhost", b"Content-Length: 4") + b"body")
                assert (await peer.refused_with(405))["allow"] == "GET, HEAD"


@pytest.mark.parametrize("body", [b"Content-Length: 1000000000000", b"Transfer-Encoding: chunked"])
async def test_a_body_is_not_waited_for(undisturbed: Undisturbed, body: bytes) -> None:
    async with undisturbed() as arena, arena.web() as peer:
        await peer.send_raw(request(b"POST /", b"Host: localhost", body))
        await peer.refused_with(405)


@pytest.mark.parametrize("body", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
async def test_an_answer_that_does_not_wait_for_a_body_says_that_it_is_the_last(
    undisturbed: Undisturbed, body: bytes
) -> None:
    async with undisturbed(log_lines=0) as arena, arena.web() as peer:
        await peer.send_raw(request(b"GET /", b"Host: localhost", body))
        response = await peer.get_response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await peer.receive_rest() == b""


async def test_a_body_without_end_costs_no_memory(undisturbed: Undisturbed) -> None:
    async with undisturbed() as arena, arena.web() as peer:
        with memory_bounded(4 * MIB):
            await peer.send_raw(request(b"POST /", b"Host: localhost", b"Content-Length: 1000000000000"))
            await peer.pour(b"x" * 65536, 500)
        assert (await peer.get_response()).status == 405


async def test_a_connection_serves_one_request_after_the_other_also_when_they_come_together(
    undisturbed: Undisturbed,
) -> None:
    async with undisturbed(log_lines=0) as arena, arena.web() as peer:
        health = request(b"GET /health", b"Host: localhost")
        for _ in range(3):
            await peer.send_raw(health)
            assert json.loads((await peer.get_response()).body)["status"] == "ok"
        await peer.send_raw(health * 50)
        for _ in range(50):
            assert (await peer.get_response()).status == 200
        await peer.send_raw(request(b"GET /health", b"Host: localhost", b"Connection: close"))
        assert (await peer.get_response()).status == 200
        assert await peer.receive_rest() == b""


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /channels HTTP/1.1\r\n\r\n", 400),
        (request(b"GET /channels", b"Host: localhost", b"X: " + b"y" * 20_000), 431),
        (request(b"POST /channels/c/messages", b"Host: localhost", b"Transfer-Encoding: gzip"), 501),
        (request(b"GET /channels", b"Host: localhost")[:-2], 408),
        (UPGRADE.replace(b"GET /", b"GET /channels").replace(b"Version: 13", b"Version: 8"), 426),
        (UPGRADE.replace(b"GET /", b"GET /channels").replace(b"localhost", b"evil.example"), 421),
    ],
    ids=["400", "431", "501", "408", "426", "421"],
)
async def test_what_was_not_read_and_an_upgrade_is_refused_in_a_line_of_text_whatever_its_path(
    undisturbed: Undisturbed, head: bytes, status: int
) -> None:
    async with undisturbed(handshake_s=0.2) as arena, arena.web() as peer:
        await peer.send_raw(head)
        await peer.refused_with(status)


@pytest.mark.parametrize(("second", "status"), [(b"GET /\r\n\r\n", 400), (b"GET /", 408)], ids=["400", "408"])
async def test_what_is_no_request_behind_a_head_request_is_refused_with_a_body(
    undisturbed: Undisturbed, second: bytes, status: int
) -> None:
    async with undisturbed(handshake_s=0.2) as arena, arena.web() as peer:
        await peer.send_raw(request(b"HEAD /", b"Host: localhost") + second)
        assert (await peer.get_response(to_head=True)).status == 200
        await peer.refused_with(status)


# Heads that do not end


@pytest.mark.parametrize("sent", [b"G", GET[:-2], GET[:-1]], ids=repr)
async def test_a_head_that_stops_half_way_gets_408(undisturbed: Undisturbed, sent: bytes) -> None:
    async with undisturbed(handshake_s=0.2) as arena, arena.web() as peer:
        await peer.send_raw(sent)
        await peer.refused_with(408)


async def test_a_head_that_comes_drop_by_drop_has_no_more_time_than_one_that_stops(undisturbed: Undisturbed) -> None:
    async with undisturbed(handshake_s=0.3) as arena, arena.web() as peer:
        await peer.send_raw(GET[:-2] + b"X: ")
        async with peer.dripping(b"x"):
            assert (await peer.get_response()).status == 408


async def test_the_second_head_of_a_connection_has_the_same_deadline(undisturbed: Undisturbed) -> None:
    async with undisturbed(handshake_s=0.2) as arena, arena.web() as peer:
        await peer.send_raw(GET)
        assert (await peer.get_response()).status == 200
        await peer.send_raw(GET[:-2])
        await peer.refused_with(408)


async def test_half_a_head_that_came_with_the_request_before_it_has_the_same_deadline(
    undisturbed: Undisturbed,
) -> None:
    async with undisturbed(handshake_s=0.2, http_idle_s=5.0) as arena, arena.web() as peer:
        await peer.send_raw(GET + GET[:-2])
        assert (await peer.get_response()).status == 200
        await peer.refused_with(408)


async def test_who_says_nothing_at_the_web_door_is_left_without_a_word(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0, handshake_s=0.2, http_idle_s=0.2) as arena:
        async with arena.web() as peer:
            assert await peer.receive_rest() == b""
        async with arena.web() as peer:
            await peer.send_raw(GET)
            assert (await peer.get_response()).status == 200
            assert await peer.receive_rest() == b""


async def test_who_still_reads_a_large_answer_is_not_taken_for_idle(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0, http_idle_s=0.05) as arena, arena.tcp() as publisher, arena.web() as peer:
        await publisher.request("publish", channel="large", data="x" * 1_000_000)
        connection = await arena.squeeze(peer)
        await peer.send_raw(b"GET /channels/large/messages HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await arena.until(lambda: connection.outbox.backlog > 0)
        await trio.sleep(0.5)
        assert connection.ending is None
        arena.release(connection)
        response = await peer.get_response()
        assert (response.status, len(response.body) > 1_000_000) == (200, True)
        assert await peer.receive_rest() == b""  # now it is idle


async def test_half_a_head_may_wait_for_its_rest_while_its_client_is_not_read_from(undisturbed: Undisturbed) -> None:
    async with undisturbed(log_lines=0, handshake_s=0.2, backlog_bytes_max=10_000) as arena:
        async with arena.tcp() as publisher, arena.web() as peer:
            await publisher.request("publish", channel="large", data="x" * 1_000_000)
            connection = await arena.squeeze(peer)
            await peer.send_raw(request(b"GET /channels/large/messages", b"Host: localhost") + GET[:-2])
            await arena.until(lambda: connection.outbox.over)
            await trio.sleep(0.5)
            assert connection.ending is None
            await peer.send_raw(GET[-2:])
            arena.release(connection)
            assert len((await peer.get_response()).body) > 1_000_000
            assert (await peer.get_response()).status == 200


@pytest.mark.parametrize("start", [b"GET /", GET[:-2] + b"X: ", GET[:-2]], ids=["target", "header", "headers"])
async def test_a_head_without_end_gets_431_and_costs_no_memory(undisturbed: Undisturbed, start: bytes) -> None:
    piece = b"X: y\r\n" * 10_000 if start == GET[:-2] else b"x" * 60_000
    async with undisturbed() as arena, arena.web() as peer:
        with memory_bounded(4 * MIB):
            await peer.send_raw(start)
            await peer.pour(piece, 500)
        assert (await peer.get_response()).status == 431


@pytest.mark.parametrize("excess", [0, 1, 20_000])
@pytest.mark.parametrize(
    ("start", "cuts"),
    [
        *product([b"GET /", b"GET /channels/c/messages"], [[], [100], [16 * 1024 + 50], [200, 2 * 16 * 1024 - 50]]),
        (b"HEAD /", []),
    ],
)
async def test_a_head_is_refused_for_its_length_however_it_is_cut(
    undisturbed: Undisturbed, start: bytes, cuts: list[int], excess: int
) -> None:
    begin = start + b" HTTP/1.1\r\nHost: localhost\r\nX: "
    head = begin + b"x" * (16 * 1024 + excess - len(begin) - 4) + b"\r\n\r\n"
    async with undisturbed(log_lines=1 if excess else 0) as arena, arena.web() as peer:
        for piece in pairwise([0, *cuts, len(head)]):
            await peer.send_raw(head[slice(*piece)])
            await wait_all_tasks_blocked(0.01)
        response = await peer.get_response(to_head=start.startswith(b"HEAD"))
        assert response.status == (431 if excess else 200)
        if excess:
            assert await peer.receive_rest() == b""
