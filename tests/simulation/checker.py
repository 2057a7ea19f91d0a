"""The judge: was what clients were told true? It reads the history and the final log, and knows nothing of how the
server works. Each rule is a promise of the README or a sentence of protocol.md.
"""

from collections.abc import Iterator

from tests.simulation.check_publishes import check_publishes
from tests.simulation.check_state import check_keys, check_members, check_replicas
from tests.simulation.check_subscriptions import check_subscriptions
from tests.simulation.history import Answered, Event, FinalLog, Greeted, Wrong, epochs_of


def check(history: list[Event], log: FinalLog) -> list[str]:
    """Everything that is wrong, a sentence each; empty where all promises were kept."""
    rules = (
        check_log,
        check_conversations,
        check_publishes,
        check_subscriptions,
        check_keys,
        check_replicas,
        check_members,
    )
    return [problem for rule in rules for problem in rule(history, log)]


def check_log(history: list[Event], log: FinalLog) -> Iterator[str]:
    """The log itself: offsets without a hole behind what was trimmed, times that never go back."""
    for channel, messages in log.messages.items():
        first = log.trimmed[channel] + 1
        offsets = [message.offset for message in messages]
        if offsets != list(range(first, first + len(offsets))):
            yield f"{channel}: the offsets {offsets} are not dense from {first} on"
        times = [message.time_ms for message in messages]
        if times != sorted(times):
            yield f"{channel}: time goes back in {times}"


def check_conversations(history: list[Event], log: FinalLog) -> Iterator[str]:
    """No client was told what no server says; no producer was forgotten; and the epoch lasted."""
    epochs = epochs_of(history)
    settled: dict[tuple[str | None, str], int] = {}
    for event in history:
        match event:
            case Wrong(problem):
                yield problem
            case Answered(op, "ok" | "refused") if op.seq is not None and event.code != "fenced":
                key = op.producer, epochs[event.connection]
                settled[key] = max(settled.get(key, 0), op.seq)
            case Answered(op, _, _, "fenced"):
                yield f"{op.tag} was fenced, but its producer had one connection"
            case Greeted(device, _, epoch, producer, seq):
                if seq < settled.get((producer, epoch), 0):
                    yield f"{device} had seq {settled[producer, epoch]} settled, but a hello was told {seq}"
                if epoch != log.epoch and log.durability == "full":
                    yield f"{device} was told epoch {epoch} in a log of epoch {log.epoch}"
            case _:
                pass
