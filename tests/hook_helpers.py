"""Hooks for tests, what they are asked, and what is said of their bugs."""

import logging
import re
from typing import Any

import pytest
from msgspec import Raw

from trisync.sessions.hook_requests import Client
from trisync.sessions.hooks import Hooks
from trisync.storage.log import Refused
from trisync.wire.errors import WireError
from trisync.wire.protocol import Publish

DEADLINE_S = 3.0
BYTES_MAX = 1024


def some_hooks() -> Hooks:
    hooks = Hooks()
    hooks.configure(DEADLINE_S, BYTES_MAX)
    return hooks


def a_client() -> Client:
    return Client("51f0", "192.0.2.7:4000 by tcp", "tcp")


def a_publish(data: bytes = b'{"text":"hi"}', channel: str = "chat.a", **fields: Any) -> Publish:
    return Publish(channel=channel, data=Raw(data), **fields)


async def refusal(hooks: Hooks, request: Publish | None = None) -> WireError:
    """The error that a publish is refused with."""
    judged = await hooks.judge_publish(a_client(), request or a_publish())
    assert isinstance(judged, Refused)
    return judged.error


async def data_behind(hooks: Hooks, request: Publish) -> bytes:
    """The data of a publish that passes, as it goes on."""
    judged = await hooks.judge_publish(a_client(), request)
    assert isinstance(judged, Publish)
    return bytes(judged.data)


def reference_in(error: WireError) -> str:
    """The reference that a client is told for a bug."""
    assert (error.code, error.retry) == ("internal", True)
    found = re.search(r"reference ([0-9a-f]{8})\Z", error.message)
    assert found is not None
    return found[1]


def logged_bug(error: WireError, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """The one record of the log, which bears the reference that the client was told."""
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert reference_in(error) in record.getMessage()
    return record
