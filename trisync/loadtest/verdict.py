"""The verdict on the messages: what was acknowledged, against what was delivered and what is in the log."""

from collections import Counter
from random import Random

from trisync.loadtest.marks import Ledger, block_of
from trisync.loadtest.plan import Block, Done, Tally
from trisync.loadtest.problems import Problems
from trisync.loadtest.results import LogRead


def blocks_of(acked: Ledger, chance: Random) -> list[Block]:
    """The blocks in which something was acknowledged, each up to its channel's head.

    First the newest of each channel, then the others in any order, since some may be left out.
    """
    heads = {tally.channel: tally.head for tally in acked.channels().values()}
    blocks = [
        Block(tally.channel, max(1, tally.block), min(heads[tally.channel], block_of(tally.block)[1] - 1))
        for tally in acked.blocks()
    ]
    chance.shuffle(blocks)
    return sorted(blocks, key=lambda block: block.last < heads[block.channel])


def judge(acked: Ledger, dones: list[Done], unanswered: int, problems: Problems) -> LogRead:
    """Compare block by block, and return how much of the log there was to compare with.

    Less than was acknowledged is no matter of this: those who awaited it have said what did not come, and why.
    `unanswered` publishes may have been stored or not: nobody can say.
    """
    times: dict[tuple[int, int], int] = {}
    counts: Counter[str] = Counter()
    for done in dones:
        for who, tallies in ((f"worker {done.worker}", done.seen), ("the log", done.read)):
            for tally in tallies:
                key = tally.channel, tally.block
                where = f"channel {tally.channel}, {who}, from offset {max(1, tally.block):,} on"
                _compare(where, acked.block(*key), tally, unanswered, problems)
                if tally.agrees(acked.block(*key)) and times.setdefault(key, tally.times) != tally.times:
                    problems.add("altered", f"{where}: not everybody was told the same times")
        counts["read"] += sum(acked.block(tally.channel, tally.block).count for tally in done.read)
        for unread in done.unread:
            counts[unread.why] += acked.block(unread.block.channel, block_of(unread.block.first)[0]).count
    _compare_heads(acked.channels(), dones, unanswered, problems)
    return LogRead(**counts)


def _compare_heads(acked: dict[int, Tally], dones: list[Done], unanswered: int, problems: Problems) -> None:
    """Blocks are read up to what was acknowledged: whether the log goes on behind that is seen by its heads alone."""
    heads = {channel: head for done in dones for channel, head in done.heads.items()}
    for channel, head in heads.items():
        extra = head - acked[channel].head
        if extra > unanswered:
            text = f"channel {channel}: the log goes on to offset {head:,}, behind {acked[channel].head:,} acknowledged"
            problems.add("uninvited", text, extra)


def _compare(where: str, acked: Tally, found: Tally, unanswered: int, problems: Problems) -> None:
    if found.count > acked.count + unanswered:
        text = f"{where}: {acked.count:,} publishes were acknowledged, {found.count:,} came"
        problems.add("uninvited", text, found.count - acked.count)
    elif found.count == acked.count and not found.agrees(acked):
        problems.add("unkept", f"{where}: what came is not what was acknowledged at its offsets")
