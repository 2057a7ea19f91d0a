"""How a channel's messages are found in the file: each names the one before it, and an index has every 16th.

An index of all messages has a place for each channel, and in a large log nearly each of those is in a page of its own:
where every publish of a batch is to another channel, each has one more page written to the WAL, and brought to its
place in the file by the next checkpoint. So a channel's newest message is named by its head (sqlite_heads.py), and an
older one is in the index only where its offset is a multiple of MILESTONE. A publish to any of 100,000 channels takes
50 us in a log of 10 million messages so, and 54 in an empty one; with an index of all it took 134 and 61
(tools/large_log.py).
"""

from trisync.storage.sqlite_heads import head_column

MILESTONE = 16
"""Steps from one indexed message to the next: what a read may take more than it was asked for, at its end."""


def chain(channel: str, after: str, until: str) -> str:
    """SQL of the table `chain`, for a SELECT behind it: a channel's messages behind one offset up to another.

    It has their `id`, `offset`, `time`, `size` and `total`, in no order; in that of the ids they are as in that of the
    offsets. The arguments are SQL too. What was trimmed is not found, though a message that is left may name it: an id
    is never given anew. Each names one of a lesser id; where damage has it otherwise, the walk ends.
    """
    columns = "messages.id, messages.offset, messages.time, messages.size, messages.total, messages.previous"
    return f"""
WITH RECURSIVE walk (id, offset, time, size, total, previous) AS (
  SELECT {columns} FROM messages
  WHERE channel = {channel} AND offset % {MILESTONE} = 0 AND offset > {after} AND offset < {until} + {MILESTONE}
  UNION ALL
  SELECT {columns} FROM messages
  WHERE id = {head_column("message", channel)}
    AND offset % {MILESTONE} <> 0 AND offset > {after} AND offset < {until} + {MILESTONE}
  UNION ALL
  SELECT {columns} FROM walk JOIN messages ON messages.id = walk.previous
  WHERE walk.offset % {MILESTONE} <> 1 AND walk.offset > {after} + 1 AND walk.previous < walk.id
), chain AS (SELECT * FROM walk WHERE offset <= {until})"""
