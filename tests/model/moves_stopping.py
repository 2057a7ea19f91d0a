"""Moves that end the server, in good order or by SIGKILL, at rest or over what is unanswered, and start it again."""

import signal

from tests.model import draws
from tests.model.calls import Call, is_refused, judge_response, judged
from tests.model.model import Producer, Verdict
from tests.model.moves_publishing import draw_call, greet, request_of
from tests.model.players import Request
from tests.model.table import Table
from tests.model.told import Told, judge_verdict, same
from tests.web_calls import head_of

UNANSWERED = 60


async def restart(table: Table) -> None:
    """The server stops at rest; in good order, everybody is told so."""
    await table.settle()
    how = table.chance.choice([signal.SIGKILL, signal.SIGTERM])
    table.say("restart by", how.name)
    table.server.process.send_signal(how)
    if how is signal.SIGTERM:
        for player in table.players:
            await player.goodbye()
            await player.stream.aclose()
    await _begin_anew(table, how)


async def _begin_anew(table: Table, how: signal.Signals) -> None:
    """Wait for the end of the server, and start another one."""
    table.ended(how)
    await table.open()


async def interrupt_producer(table: Table) -> None:
    """The server ends over a producer's publishes; what was not settled then is sent again, and stored once."""
    chance, model = table.chance, table.model
    await table.settle()
    how = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    talker, producer = chance.choice(table.talkers), chance.choice(draws.PRODUCERS)
    before = model.producers.setdefault(producer, Producer()).settled
    fields = {"op": "hello", "producer": producer, "name": chance.choice(draws.NAMES)}
    await talker.ask(Request(fields))
    publishes = draws.publishes(chance, model, producer, UNANSWERED)
    table.say(talker.kind, producer, "is interrupted by", how.name, publishes)
    for channel in list(talker.subscriptions):
        await talker.ask(Request({"op": "unsubscribe", "channel": channel}))
    first = chance.randrange(UNANSWERED)
    await talker.send([*map(request_of, publishes[:first])])
    answers = [await talker.receive() for _ in range(chance.randrange(first + 1))]
    await talker.send([*map(request_of, publishes[first:])])
    table.server.process.send_signal(how)
    answers += await talker.answered()
    await talker.stream.aclose()
    await _begin_anew(table, how)
    talker = chance.choice(table.talkers)
    (hello,) = await talker.ask(Request(fields))
    greet(table, talker, fields)
    count = hello.fields["seq"] - before
    verdicts = [model.publish(publish, talker.name, producer)[0] for publish in publishes[:count]]
    _judge_interrupted(answers, verdicts, how)
    again = [model.publish(publish, talker.name, producer)[0] for publish in publishes]
    for publish, told, verdict in zip(publishes, await talker.ask(*map(request_of, publishes)), again, strict=True):
        judge_verdict(told, verdict, publish)


def _judge_interrupted(answers: list[Told], verdicts: list[Verdict], how: signal.Signals) -> None:
    """Every verdict that was told must have been kept; who stops in good order tells all, and refuses the rest."""
    for answer, verdict in zip(answers, verdicts, strict=False):
        judge_verdict(answer, verdict, "before the end")
    rest = answers[len(verdicts) :]
    if how is signal.SIGTERM:
        same(rest[-1:] and rest[-1].fields["op"], "goodbye", "what is said last")
        codes = {answer.fields.get("code") for answer in rest[:-1]}
        same(codes - {"draining", "out_of_sequence"}, set(), f"what is answered behind {len(verdicts)} verdicts")
    else:
        same(rest, [], f"what is answered behind the {len(verdicts)} verdicts that were kept")


async def interrupt_call(table: Table) -> None:
    """The server is killed over a call that has an Idempotency-Key; it comes again, and is stored once."""
    chance = table.chance
    await table.settle()
    call = _draw_call_to_repeat(table)
    table.say("killed over", call)
    body = call.body or b""
    headers = {name.replace("_", "-"): text for name, text in call.headers.items()} | {"Content-Length": str(len(body))}
    await table.callers[0].send_raw(head_of(call.method, call.path, headers) + body)
    for _ in range(chance.randrange(4)):  # the server turns meanwhile
        await table.callers[1].call("GET", "/health")
    table.server.process.kill()
    await _begin_anew(table, signal.SIGKILL)
    response = await table.call(call.method, call.path, call.body, **call.headers)
    verdict, _ = judged(call, table.model)
    if b'"duplicate":true' in response.body:
        verdict = table.model.repeat(table.model.calls[call.publish.channel, call.once or ""][1])
    judge_response(call, response, verdict, reused=False)


def _draw_call_to_repeat(table: Table) -> Call:
    while True:
        call = draw_call(table.chance, table.model)._replace(once=f"i{table.chance.randrange(10**9)}")
        if not is_refused(call):
            return call
