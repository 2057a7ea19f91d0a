"""What connect() and connect_sync() are told, checked. What each of it means stands there."""

import ssl
from dataclasses import dataclass

from trisync.client.transports import Address, parse_url
from trisync.client.wire import check_hello
from trisync.wire.arguments import check_integer, check_seconds


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a client is made with. Raises TypeError and ValueError for what cannot be."""

    url: str
    name: str | None
    producer: str | None
    wait_s: float | None
    close_s: float
    queue_max: int
    queue_bytes_max: int
    tls: ssl.SSLContext | None

    @property
    def address(self) -> Address:
        """Where the server is."""
        return parse_url(self.url)

    def __post_init__(self) -> None:
        address = self.address
        check_hello(self.name, self.producer)
        if self.tls is not None and not isinstance(self.tls, ssl.SSLContext):
            raise TypeError(f"tls is an ssl.SSLContext, not {self.tls!r}")
        if self.tls is not None and not address.encrypted:
            raise ValueError(f"tls is for tcps:// and wss://, and {address} is not encrypted")
        check_integer("queue_max", self.queue_max, 1)
        check_integer("queue_bytes_max", self.queue_bytes_max, 1)
        check_seconds("close_s", self.close_s)
        if self.wait_s is not None:
            check_seconds("wait_s", self.wait_s)
