"""The verdict on the messages: what was acknowledged, against what was delivered and what is in the log."""

from collections import Counter
from collections.abc import Iterable
from random import Random

from trisync.loadtest.marks import BLOCK, Ledger
from trisync.loadtest.plan import Block, Done, Tally
from trisync.loadtest.problems import Problems
from trisync.loadtest.results import LogRead


def blocks_of(acked: Ledger, chance: Random) -> list[Block]:
    """The blocks in which something was acknowledged, each up to its channel's head.

    First the newest of each channel, then the others in any order, since some may be left out.
    """
    heads = {tally.channel: tally.head for tally in acked.channels().values()}
    blocks = [
        Block(tally.channel, max(1, tally.block * BLOCK), min(heads[tally.channel], (tally.block + 1) * BLOCK - 1))
        for tally in acked.blocks()
    ]
    chance.shuffle(blocks)
    return sorted(blocks, key=lambda block: block.last < heads[block.channel])


def judge(acked: Ledger, dones: list[Done], unanswered: int, problems: Problems) -> LogRead:
    """Compare, and return how much of the log there was to compare with.

    Less than was acknowledged is no matter of this: those who awaited it have said what did not come, and why.
    `unanswered` publishes may have been stored or not: nobody can say.
    """
    channels = acked.channels()
    for done in dones:
        for seen in Ledger(done.seen).channels().values():
            one = channels.get(seen.channel, Tally(seen.channel, 0))
            _compare(f"channel {seen.channel}, worker {done.worker}", one, seen, unanswered, problems)
    read = Ledger(tally for done in dones for tally in done.read)
    for tally in read.blocks():
        where = f"channel {tally.channel}, the log from offset {max(1, tally.block * BLOCK):,} on"
        _compare(where, acked.block(tally.channel, tally.block), tally, unanswered, problems)
    _compare_times(acked, [*(Ledger(done.seen) for done in dones), read], problems)
    return _count_read(acked, read, dones)


def _compare(where: str, acked: Tally, found: Tally, unanswered: int, problems: Problems) -> None:
    if found.count > acked.count + unanswered:
        text = f"{where}: {acked.count:,} publishes were acknowledged, {found.count:,} came"
        problems.add("uninvited", text, found.count - acked.count)
    elif found.count == acked.count and not found.agrees(acked):
        problems.add("unkept", f"{where}: what came is not what was acknowledged at its offsets")


def _compare_times(acked: Ledger, ledgers: Iterable[Ledger], problems: Problems) -> None:
    """Whether all who have a block whole were told the same times."""
    times: dict[tuple[int, int], int] = {}
    for ledger in ledgers:
        for tally in ledger.blocks():
            key = tally.channel, tally.block
            if tally.agrees(acked.block(*key)) and times.setdefault(key, tally.times) != tally.times:
                text = f"channel {tally.channel}, up to offset {tally.head}: not everybody was told the same times"
                problems.add("altered", text)


def _count_read(acked: Ledger, read: Ledger, dones: list[Done]) -> LogRead:
    counts = Counter(read=sum(acked.block(one.channel, one.block).count for one in read.blocks()))
    for done in dones:
        for unread in done.unread:
            counts[unread.why] += acked.block(unread.block.channel, unread.block.first // BLOCK).count
    return LogRead(**counts)
