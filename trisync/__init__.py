"""trisync: a reliable real-time data synchronisation server, to run as it is or inside a program of one's own; and
its clients, connect() and connect_sync(), with what they give and raise in trisync.client.

Each name is imported when it is first used, so that a server does not pay for the client, nor a client for the
server. What type checkers need to know of them is in __init__.pyi.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Address": "server",
    "Client": "sessions.hook_requests",
    "Entry": "embedding",
    "PublishRequest": "sessions.hook_requests",
    "Refuse": "sessions.hook_requests",
    "Server": "server",
    "Settings": "settings",
    "SubscribeRequest": "sessions.hook_requests",
    "WireError": "wire.errors",
    "__version__": "version",
    "connect": "client",
    "connect_sync": "client",
}

__all__ = ["client", *_HOMES]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "client":
        return import_module("trisync.client")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"trisync.{_HOMES[name]}"), name)
    return found
