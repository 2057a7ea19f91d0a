"""What connect() and connect_sync() are told, checked. What each of it means stands there."""

import ssl
from typing import NamedTuple

from trisync.client.transports import Address, parse_url
from trisync.client.wire import check_hello
from trisync.wire.protocol import check_integer, check_seconds


class Options(NamedTuple):
    """What a client is made with."""

    address: Address
    name: str | None
    producer: str | None
    wait_s: float | None
    close_s: float
    queue_max: int
    queue_bytes_max: int
    tls: ssl.SSLContext | None


def check_options(
    url: str,
    *,
    name: str | None,
    producer: str | None,
    wait_s: float | None,
    close_s: float,
    queue_max: int,
    queue_bytes_max: int,
    tls: ssl.SSLContext | None,
) -> Options:
    """The options of a client. Raises TypeError and ValueError for what cannot be."""
    address = parse_url(url)
    check_hello(name, producer)
    if tls is not None and not isinstance(tls, ssl.SSLContext):
        raise TypeError(f"tls is an ssl.SSLContext, not {tls!r}")
    if tls is not None and not address.encrypted:
        raise ValueError(f"tls is for tcps:// and wss://, and {address} is not encrypted")
    check_integer("queue_max", queue_max, 1)
    check_integer("queue_bytes_max", queue_bytes_max, 1)
    check_seconds("close_s", close_s)
    if wait_s is not None:
        check_seconds("wait_s", wait_s)
    return Options(address, name, producer, wait_s, close_s, queue_max, queue_bytes_max, tls)
