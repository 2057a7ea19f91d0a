from trisync import client as client
from trisync.client import connect as connect
from trisync.client import connect_sync as connect_sync
from trisync.embedding import Entry as Entry
from trisync.server import Address as Address
from trisync.server import Server as Server
from trisync.sessions.hook_requests import Client as Client
from trisync.sessions.hook_requests import PublishRequest as PublishRequest
from trisync.sessions.hook_requests import Refuse as Refuse
from trisync.sessions.hook_requests import SubscribeRequest as SubscribeRequest
from trisync.settings import Settings as Settings
from trisync.version import __version__ as __version__
from trisync.wire.errors import WireError as WireError

__all__: list[str]
