"""Writing calls over HTTP: how one is made, what becomes of it, and what answer it must have."""

from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from tests.harness import Json
from tests.hostile.raw_peers import Response
from tests.model.model import Message, Model, Publish, Settled, Verdict, fault
from tests.model.told import judge_verdict, read, same

UNUSABLE = "s h"
"""An Idempotency-Key that is none."""
STATUSES = {"bad_json": 400, "bad_request": 400, "conflict": 412, "limit": 429, "too_large": 413}


class Call(NamedTuple):
    """A call that publishes."""

    method: str
    publish: Publish
    name: str | None = None
    once: str | None = None
    """The Idempotency-Key."""
    condition: tuple[str, str] | None = None
    """If-Match or If-None-Match, and what it asks for."""
    content_type: str | None = None

    @property
    def path(self) -> str:
        """The target, with the query."""
        channel, query = path_of(self.publish.channel), self._query
        where = f"{channel}/messages" if self.method == "POST" else f"{channel}/state/{encoded(self.publish.key or '')}"
        return f"{where}?{urlencode(query)}" if query else where

    @property
    def _query(self) -> dict[str, str]:
        fields: Json = {}
        if self.method == "POST":
            fields = {name: value for name, value in self.publish.said.items() if name != "channel"}
        if self.name is not None:
            fields["name"] = self.name
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()}

    @property
    def body(self) -> bytes | None:
        """What is sent, if anything."""
        return None if self.method == "DELETE" else self.publish.data.encode()

    @property
    def headers(self) -> dict[str, str]:
        """As Caller.call() takes them."""
        named = {"idempotency_key": self.once, "content_type": self.content_type}
        headers = {name: text for name, text in named.items() if text is not None}
        return headers | ({self.condition[0]: self.condition[1]} if self.condition else {})

    @property
    def identity(self) -> Any:
        """What makes it another request under the same Idempotency-Key."""
        return self.method, self.publish.key, sorted(self._query.items()), self.condition, self.body

    @property
    def expected_word(self) -> str | None:
        """`*` where the condition is only that there is the key."""
        return "*" if self.condition == ("if_match", "*") else None


def encoded(name: str) -> str:
    """A name as a segment of a path."""
    return quote(name, safe="")


def path_of(channel: str) -> str:
    """A channel's path."""
    return f"/channels/{encoded(channel)}"


def is_refused(call: Call) -> bool:
    """Whether the log is not even asked."""
    kept_for_later = call.once is not None and (call.publish.ephemeral or call.expected_word == "*")
    return bool(fault(call.publish) or call.once == UNUSABLE or kept_for_later)


def judged(call: Call, model: Model) -> tuple[Verdict, Message | None]:
    """What becomes of a call; also the message, if it is to be shown."""
    publish = call.publish
    if is_refused(call):
        return Verdict(fault(publish) or "bad_request"), None
    slot = publish.channel, call.once or ""
    if call.once and slot in model.calls:
        identity, settled = model.calls[slot]
        return (Verdict("bad_request") if identity != call.identity else model.repeat(settled)), None
    channel = model.channel(publish.channel)
    verdict, message = channel.store(publish, call.name)
    if call.once:
        model.calls[slot] = call.identity, Settled(publish, verdict)
    return verdict, message


def is_reused(call: Call, model: Model) -> bool:
    """Whether its Idempotency-Key is another request's."""
    known = model.calls.get((call.publish.channel, call.once or ""))
    return not is_refused(call) and known is not None and call.once is not None and known[0] != call.identity


def judge_response(call: Call, response: Response, verdict: Verdict, *, reused: bool) -> None:
    """An answer must be this one. Raises Mismatch."""
    judge_verdict(read(response.body), verdict, call)
    offset: int = verdict.details.get("offset", 0)
    is_post = call.method == "POST"
    status = STATUSES.get(verdict.code, 200)
    headers: dict[str, str | None] = {"etag": None, "location": None}
    if verdict.code == "ok" and call.publish.ephemeral:
        status = 202
    elif verdict.code == "ok" and is_post:
        status = 201
        name = call.publish.channel.replace("/", "%2F").replace("#", "%23")
        headers["location"] = f"/channels/{name}/messages?since={offset - 1}&limit=1"
    elif verdict.code == "ok" and call.publish.data != "null":
        status = 201 if call.publish.expect == 0 and not call.expected_word else 200
        headers["etag"] = f'"{offset}"'
    elif verdict.code == "conflict" and is_post:
        status = 409
    elif verdict.code == "conflict" and offset:
        headers["etag"] = f'"{offset}"'
    same(response.status, 422 if reused else status, f"the status of {call}")
    same({name: response.headers.get(name) for name in headers}, headers, f"the headers of {call}")
