"""The tables of the log, as they came to be: each migration brings a file to the next version."""

import sqlite3
from contextlib import closing
from typing import Any

import sqlite_utils
from sqlite_utils import Migrations

from trisync.storage.sqlite_chains import MILESTONE

_LOG_VIEW = (
    "SELECT channels.name AS channel, messages.offset, "
    "strftime('%Y-%m-%d %H:%M:%f', messages.time / 1000.0, 'unixepoch') AS time, "
    'messages.sender AS "from", messages.key, messages.data '
    "FROM messages JOIN channels ON channels.id = messages.channel {condition}ORDER BY messages.id"
)

_NOT_EMPTIED = "WHERE channels.name NOT LIKE '$%' "

migrations = Migrations("trisync")


@migrations()
def m001_channels_and_messages(db: Any) -> None:
    """The log, the producers' verdicts, and a view for people."""
    db["meta"].create({"name": str, "value": str}, pk="name")
    db["channels"].create(
        {"id": int, "name": str, "trimmed": int},
        pk="id",
        not_null={"name", "trimmed"},
        defaults={"trimmed": 0},
    )
    db["channels"].create_index(["name"], unique=True)
    # Appended to in the order of commits; the index tells a channel's messages (until m004).
    db["messages"].create(
        {
            "id": int,
            "channel": int,
            "offset": int,
            "time": int,
            "size": int,  # bytes of the whole message as it is sent; read without reading the data
            "sender": str,
            "key": str,
            "data": str,
        },
        pk="id",
        not_null={"channel", "offset", "time", "size", "data"},
        foreign_keys=[("channel", "channels", "id")],
    )
    db["messages"].create_index(["channel", "offset"], unique=True)
    db["producers"].create(
        {"id": str, "seq": int, "verdicts": bytes, "seen": int},
        pk="id",
        not_null={"seq", "verdicts", "seen"},
    )
    db["producers"].create_index(["seen"])
    db.create_view("log", _LOG_VIEW.format(condition=""))


@migrations()
def m002_state(db: Any) -> None:
    """The newest word of each key, and the answers to HTTP requests that may come again."""
    # Not by sqlite-utils, which makes no tables WITHOUT ROWID: one tree instead of two for every keyed publish.
    db.execute(
        "CREATE TABLE state (channel INTEGER NOT NULL REFERENCES channels(id), key TEXT NOT NULL, "
        "offset INTEGER NOT NULL, size INTEGER NOT NULL, data TEXT NOT NULL, PRIMARY KEY (channel, key)) WITHOUT ROWID"
    )
    db["channels"].add_column("keys", int, not_null_default=0)  # how many the state has
    db["idempotency"].create(
        {"id": bytes, "fingerprint": bytes, "verdict": bytes, "time": int},
        pk="id",
        not_null={"fingerprint", "verdict", "time"},
    )
    db["idempotency"].create_index(["time"])
    # A name with $ is no channel's: it is what is left of one that was emptied, until that is tidied up.
    db.create_view("log", _LOG_VIEW.format(condition=_NOT_EMPTIED), replace=True)
    db.create_view(
        "documents",
        "SELECT channels.name AS channel, state.key, state.offset, state.data "
        "FROM state JOIN channels ON channels.id = state.channel WHERE channels.name NOT LIKE '$%'",
    )


@migrations()
def m003_totals(db: Any) -> None:
    """What a channel holds, in bytes, from its oldest and its newest message alone: for retention by size."""
    db["messages"].add_column("total", int, not_null_default=0)
    db.execute(
        "UPDATE messages SET total = summed.total FROM "
        "(SELECT id, sum(size) OVER (PARTITION BY channel ORDER BY offset) AS total FROM messages) AS summed "
        "WHERE summed.id = messages.id"
    )


@migrations()
def m004_chains(db: Any) -> None:
    """Each message names the one before it, and only some are in an index: see sqlite_chains.py."""
    db["heads"].create(  # the newest message of each channel that has, or had, any; and the oldest that there is
        {"channel": int, "offset": int, "total": int, "message": int, "oldest": int},
        pk="channel",
        not_null={"offset", "total", "message"},
        foreign_keys=[("channel", "channels", "id")],
    )
    db.execute(
        "INSERT INTO heads SELECT newest.channel, newest.offset, newest.total, newest.id, "
        "(SELECT id FROM messages WHERE channel = channels.id ORDER BY offset LIMIT 1) "
        "FROM channels JOIN messages AS newest ON newest.id = "
        "(SELECT id FROM messages WHERE channel = channels.id ORDER BY offset DESC LIMIT 1)"
    )
    # What was emptied, and begun to be tidied up.
    db.execute(
        "UPDATE channels SET trimmed = (SELECT min(offset) - 1 FROM messages WHERE channel = channels.id) "
        "WHERE name LIKE '$%' AND id IN (SELECT channel FROM heads)"
    )
    # What is found without the data is before it: behind large data, reading it would mean to read all of that.
    db["chained"].create(
        {
            "id": int,
            "channel": int,
            "offset": int,
            "time": int,
            "size": int,
            "total": int,
            "previous": int,  # the id of the channel's message before this one, 0 where there was none
            "sender": str,
            "key": str,
            "data": str,
        },
        pk="id",
        not_null={"channel", "offset", "time", "size", "total", "previous", "data"},
        foreign_keys=[("channel", "channels", "id")],
    )
    db.execute(
        "INSERT INTO chained SELECT id, channel, offset, time, size, total, "
        "coalesce((SELECT id FROM messages AS before "
        "WHERE before.channel = messages.channel AND before.offset = messages.offset - 1), 0), "
        "sender, key, data FROM messages ORDER BY id"
    )
    db["log"].drop()
    db["messages"].drop()
    db.rename_table("chained", "messages")
    db.execute(
        f"CREATE UNIQUE INDEX idx_messages_milestones ON messages (channel, offset) WHERE offset % {MILESTONE} = 0"
    )
    db.create_view("log", _LOG_VIEW.format(condition=_NOT_EMPTIED))


@migrations()
def m005_recent_heads(db: Any) -> None:
    """Rows of `heads` that are newer than those there: see sqlite_heads.py."""
    db["recent_heads"].create(
        {"channel": int, "offset": int, "total": int, "message": int, "oldest": int},
        pk="channel",
        not_null={"offset", "total", "message"},
        foreign_keys=[("channel", "channels", "id")],
    )


@migrations()
def m006_heads_of_all(db: Any) -> None:
    """Each channel has a head, also one that was emptied: where there is none, it is lost."""
    db.execute(
        "INSERT INTO heads (channel, offset, total, message) SELECT id, trimmed, 0, 0 FROM channels "
        "WHERE trimmed > 0 AND id NOT IN (SELECT channel FROM heads UNION ALL SELECT channel FROM recent_heads)"
    )


with closing(sqlite3.connect(":memory:")) as _empty:
    STEPS = [step.name for step in migrations.pending(sqlite_utils.Database(_empty))]
SCHEMA_VERSION = len(STEPS)

TABLES = {
    "meta": 1,
    "channels": 1,
    "messages": 1,
    "producers": 1,
    "state": 2,
    "idempotency": 2,
    "heads": 4,
    "recent_heads": 5,
}
"""What a log is in, with the version of the schema that brought each table."""
