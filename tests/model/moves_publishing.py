"""Moves that write: publishes of talkers, calls over HTTP, and a channel that is emptied."""

import random
from dataclasses import replace

from tests.harness import Json
from tests.model import draws
from tests.model.calls import UNUSABLE, Call, is_reused, judge_response, judged, path_of
from tests.model.model import Model, Publish, Verdict, fault
from tests.model.players import Request, Talker
from tests.model.table import Table
from tests.model.told import judge_verdict, read, same

NO_OFFSET = (1 << 53) - 1


def request_of(publish: Publish) -> Request:
    """A publish as a talker sends it."""
    return Request({"op": "publish", **publish.said}, publish.data)


async def publish(table: Table) -> None:
    """A talker publishes, one message or many together, as a producer or not."""
    chance, model = table.chance, table.model
    talker = chance.choice(table.talkers)
    count = chance.choice([1, 1, 1, 2, 5, 20])
    requests: list[Request] = []
    verdicts: list[Verdict] = []
    for _ in range(count):
        drawn = draws.publish(chance, model)
        if talker.producer is not None and chance.random() < 0.7:
            drawn = draws.with_seq(chance, model, talker.producer, drawn)
        elif chance.random() < 0.02:
            drawn = replace(drawn, seq=1)  # without a producer
        if fault(drawn) == "bad_json" and count > 1:
            continue  # its answer may bear no id
        if talker.fenced and drawn.seq is not None and fault(drawn) != "bad_json":
            verdict, message = Verdict("fenced"), None
        else:
            verdict, message = model.publish(drawn, talker.name, talker.producer)
        table.deliver(message, but=talker)
        is_owed = message is not None and message.channel in talker.subscriptions
        requests.append(request_of(drawn)._replace(owed=[message] if is_owed and message else []))
        verdicts.append(verdict)
    table.say(talker.kind, talker.producer, *requests)
    for request, told, verdict in zip(requests, await talker.ask(*requests), verdicts, strict=True):
        judge_verdict(told, verdict, (talker.kind, request))


async def hello(table: Table) -> None:
    """A talker takes a name, or becomes a producer, and fences who was it before."""
    chance = table.chance
    talker = chance.choice(table.talkers)
    fields: Json = {"op": "hello"}
    if chance.random() < 0.6:
        fields["name"] = chance.choice(draws.NAMES)
    if chance.random() < 0.6:
        fields["producer"] = chance.choice(draws.PRODUCERS)
    if wrong := chance.random() < 0.1:
        fields |= chance.choice([{"name": "a\nb"}, {"name": "\u0085"}, {"producer": "short"}, {"producer": "x x" * 8}])
    table.say(talker.kind, fields)
    (told,) = await talker.ask(Request(fields))
    if wrong:
        judge_verdict(told, Verdict("bad_request"), fields)
        return
    greet(table, talker, fields)
    known = table.model.producers.get(talker.producer or "")
    same(told.fields["epoch"], table.epoch, "the epoch")
    settled = (known.settled if known else 0) if "producer" in fields else None
    same(told.fields.get("seq"), settled, "the producer's last seq")


def greet(table: Table, talker: Talker, fields: Json) -> None:
    """A talker's hello was taken."""
    talker.name = fields.get("name", talker.name)
    if "producer" in fields:
        for other in table.talkers:
            other.fenced = other.fenced or (other is not talker and other.producer == fields["producer"])
        talker.producer, talker.fenced = fields["producer"], False


async def write_over_http(table: Table) -> None:
    """A call publishes, or comes again under its Idempotency-Key, not always as it was."""
    chance = table.chance
    repeats = table.repeatable and chance.random() < 0.3
    call = chance.choice(table.repeatable) if repeats else draw_call(chance, table.model)
    if repeats and chance.random() < 0.4:
        call = altered(chance, call)
    response = await table.call(call.method, call.path, call.body, **call.headers)
    reused = is_reused(call, table.model)
    verdict, message = judged(call, table.model)
    table.deliver(message)
    judge_response(call, response, verdict, reused=reused)
    if call.once is not None and not repeats:
        table.repeatable.append(call)


def draw_call(chance: random.Random, model: Model) -> Call:
    """Any call that publishes."""
    drawn = draws.publish(chance, model)
    if drawn.ephemeral and chance.random() < 0.5:
        drawn = replace(drawn, ephemeral=None)
    name = chance.choice([None, *draws.NAMES])
    once = chance.choice([None, None, None, "id1", '"id2"', *[f"n{chance.randrange(10**6)}"] * 2])
    if fault(drawn) == "bad_json":
        once = None  # of two faults, which is told is not promised
    elif once is not None and chance.random() < 0.05:
        once = UNUSABLE
    content_type = chance.choice(
        [None, None, "application/json", "application/json; charset=utf-8", "application/x+json"]
    )
    if not drawn.key or chance.random() < 0.4:
        return Call("POST", drawn, name, once, None, content_type)
    method = chance.choice(["PUT", "PUT", "PATCH", "DELETE"])
    data = {"PATCH": chance.choice(draws.PATCHES), "DELETE": "null"}.get(method, drawn.data)
    drawn = Publish(drawn.channel, data, drawn.key, merge=True if method == "PATCH" else None)
    condition = None
    if chance.random() < 0.5:
        there = model.channel(drawn.channel).words.get(drawn.key or "")
        offset = there.offset if there else None
        condition, expect = chance.choice(
            [
                (("if_none_match", "*"), 0),
                (("if_match", "*"), offset or NO_OFFSET),
                (("if_match", f'"{offset or 4}"'), offset or 4),
                (("if_match", '"1"'), 1),
            ]
        )
        drawn = replace(drawn, expect=expect)
    return Call(method, drawn, name, once, condition, content_type)


def altered(chance: random.Random, call: Call) -> Call:
    """Another call under the same Idempotency-Key, in one thing."""
    others = [call._replace(name="eve")]
    if call.body is not None:
        others.append(call._replace(publish=replace(call.publish, data="7")))
    if call.condition is not None:
        others.append(call._replace(condition=None, publish=replace(call.publish, expect=None)))
    if call.method == "PATCH":
        others.append(call._replace(method="PUT", publish=replace(call.publish, merge=None)))
    return chance.choice(others)


async def clear(table: Table) -> None:
    """A channel is emptied of messages and state."""
    await table.settle()
    channel = table.model.channel(table.chance.choice(draws.CHANNELS))
    response = await table.call("DELETE", path_of(channel.name))
    same((response.status, read(response.body).fields), (200, {"op": "ok", "offset": channel.head}), "emptied")
    gap = channel.clear()
    if gap is not None:
        table.emptied(gap)
    await table.settle()
