"""Client libraries for Python: connect() for asyncio and Trio, connect_sync() for threads; what they give and raise.

`trisync.connect` and `trisync.connect_sync` are these two. A server does not import this package.
"""

from trisync.client.aio import Client, connect
from trisync.client.documents import Document, Roster
from trisync.client.errors import (
    BadJson,
    BadRequest,
    ClientError,
    Closed,
    Conflict,
    Draining,
    Fenced,
    Forbidden,
    Gap,
    Internal,
    LimitReached,
    NotConnected,
    NotFound,
    OutOfSequence,
    QueueFull,
    RateLimited,
    Refused,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownOp,
    Unsettled,
)
from trisync.client.feeds import PresenceChange
from trisync.client.receipts import Receipt
from trisync.client.replica import Change, Entry
from trisync.client.status import State, Status
from trisync.client.streams import Changes, Subscription
from trisync.client.sync import SyncClient, connect_sync
from trisync.client.sync_feeds import SyncDocument, SyncReceipt, SyncRoster, SyncSubscription
from trisync.client.transports import DEFAULT_URL
from trisync.client.wire import History, Member, Message, Word

__all__ = [
    "DEFAULT_URL",
    "BadJson",
    "BadRequest",
    "Change",
    "Changes",
    "Client",
    "ClientError",
    "Closed",
    "Conflict",
    "Document",
    "Draining",
    "Entry",
    "Fenced",
    "Forbidden",
    "Gap",
    "History",
    "Internal",
    "LimitReached",
    "Member",
    "Message",
    "NotConnected",
    "NotFound",
    "OutOfSequence",
    "PresenceChange",
    "QueueFull",
    "RateLimited",
    "Receipt",
    "Refused",
    "Roster",
    "State",
    "Status",
    "Subscription",
    "SyncClient",
    "SyncDocument",
    "SyncReceipt",
    "SyncRoster",
    "SyncSubscription",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnknownOp",
    "Unsettled",
    "Word",
    "connect",
    "connect_sync",
]
