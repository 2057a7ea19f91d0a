"""trisync: a reliable real-time data synchronisation server, to run as it is or inside a program of one's own."""

from trisync.embedding import Entry
from trisync.errors import WireError
from trisync.hooks import Client, PublishRequest, Refuse, SubscribeRequest
from trisync.server import Address, Server
from trisync.settings import Settings
from trisync.version import __version__

__all__ = [
    "Address",
    "Client",
    "Entry",
    "PublishRequest",
    "Refuse",
    "Server",
    "Settings",
    "SubscribeRequest",
    "WireError",
    "__version__",
]
