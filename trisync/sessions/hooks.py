"""Hooks: the business logic of a program that embeds the server, asked about clients and their requests.

Here is how a program registers its functions, and what becomes of a request when one refuses, fails or takes too
long. What they are given is in hook_requests.py. When they are asked is the business of the session and the doors;
nothing here knows a connection or the broker.
"""

import inspect
import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Any, TypeVar, overload

import trio
from msgspec import UNSET

from trisync.patterns import compile_pattern
from trisync.sessions.hook_requests import Client, PublishRequest, Refuse, SubscribeRequest
from trisync.settings import Settings
from trisync.storage.log import Refused
from trisync.tokens import Tokens
from trisync.wire.errors import WireError
from trisync.wire.protocol import GetPresence, GetState, History, Publish, Subscribe

logger = logging.getLogger(__name__)

CHANNELS_REMEMBERED = 10_000
"""Channels whose matching hooks are kept: finding them anew costs one match a hook."""

PublishHook = Callable[[PublishRequest], Awaitable[None]]
SubscribeHook = Callable[[SubscribeRequest], Awaitable[None]]
ClientHook = Callable[[Client], Awaitable[None]]

_Hook = Callable[[Any], Awaitable[None]]
_P = TypeVar("_P", bound=PublishHook)
_S = TypeVar("_S", bound=SubscribeHook)
_C = TypeVar("_C", bound=ClientHook)
_F = TypeVar("_F", bound=_Hook)

_PASSING = {"unavailable", "draining"}
"""What the server's own calls raise through no fault of the hook: a traceback for each client would say no more."""


def _checked(hook: _F) -> _F:
    """The hook, if it is an async function. Raises TypeError."""
    if not callable(hook) or not (
        inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(type(hook).__call__)
    ):
        raise TypeError(f"a hook is an async function (async def), which {hook!r} is not")
    return hook


class _ByChannel:
    """Hooks with their patterns, and which of them are for a channel."""

    __slots__ = ("_entries", "matching")

    def __init__(self) -> None:
        entries: list[tuple[Callable[[str], bool], _Hook]] = []

        @lru_cache(CHANNELS_REMEMBERED)
        def matching(channel: str) -> tuple[_Hook, ...]:
            return tuple(hook for matches, hook in entries if matches(channel))

        self._entries = entries
        self.matching = matching

    def __bool__(self) -> bool:
        return bool(self._entries)

    def register(self, what: _F | str) -> _F | Callable[[_F], _F]:
        if isinstance(what, str):
            return partial(self._add, compile_pattern(what))
        return self._add(compile_pattern("*"), what)

    def _add(self, matches: Callable[[str], bool], hook: _F) -> _F:
        self._entries.append((matches, _checked(hook)))
        self.matching.cache_clear()
        return hook


class Hooks:
    """A program's hooks. One kind's run one after the other, in the order of registration.

    They are decorators for async functions and return the function unchanged; they raise TypeError for what is
    no async function, ValueError for what is no pattern. `on_publish` and `on_subscribe` take a pattern of
    channel names (`"chat.*"`); without one they are for all channels.

    Each hook has `deadline_s`. One that takes longer, or raises anything but Refuse, has a bug: it refuses what
    it was asked about with the code `internal`, and is logged with the reference that the client is told. After a
    refusal no further hook is asked. A hook that computes without awaiting holds up everybody: it cannot be
    stopped. Cancellation from outside passes through.
    """

    __slots__ = ("_connect", "_deadline_s", "_disconnect", "_message_bytes_max", "_publish", "_subscribe", "_tokens")

    def __init__(self) -> None:
        self._publish = _ByChannel()
        self._subscribe = _ByChannel()
        self._connect: tuple[ClientHook, ...] = ()
        self._disconnect: tuple[ClientHook, ...] = ()
        defaults = Settings()
        self.configure(defaults.hook_s, defaults.message_bytes_max)

    def configure(self, deadline_s: float, message_bytes_max: int, tokens: Tokens = secrets.token_hex) -> None:
        """Set how many seconds each hook has, and how many bytes the data may have that a hook changed."""
        self._deadline_s = deadline_s
        self._message_bytes_max = message_bytes_max
        self._tokens = tokens

    # Registering

    @overload
    def on_publish(self, pattern: _P, /) -> _P: ...

    @overload
    def on_publish(self, pattern: str = "*", /) -> Callable[[_P], _P]: ...

    def on_publish(self, pattern: _P | str = "*", /) -> _P | Callable[[_P], _P]:
        """Ask this before a message is published: it may change its data, or raise Refuse."""
        return self._publish.register(pattern)

    @overload
    def on_subscribe(self, pattern: _S, /) -> _S: ...

    @overload
    def on_subscribe(self, pattern: str = "*", /) -> Callable[[_S], _S]: ...

    def on_subscribe(self, pattern: _S | str = "*", /) -> _S | Callable[[_S], _S]:
        """Ask this before a client reads a channel: it may raise Refuse.

        That is a subscription, and also a request for the channel's history, state or presence: who may not have
        the one must not have the other.
        """
        return self._subscribe.register(pattern)

    def on_connect(self, hook: _C, /) -> _C:
        """Ask this when a client has come: it may name the client, or raise Refuse, which ends the connection."""
        self._connect = (*self._connect, _checked(hook))
        return hook

    def on_disconnect(self, hook: _C, /) -> _C:
        """Tell this that a client has gone, and why (`client.ended`). There is nothing left to refuse."""
        self._disconnect = (*self._disconnect, _checked(hook))
        return hook

    # Which there are

    @property
    def any_publish(self) -> bool:
        return bool(self._publish)

    @property
    def any_subscribe(self) -> bool:
        return bool(self._subscribe)

    @property
    def any_connect(self) -> bool:
        return bool(self._connect)

    @property
    def any_disconnect(self) -> bool:
        return bool(self._disconnect)

    def for_publish(self, channel: str) -> tuple[PublishHook, ...]:
        """The hooks that a publish to this channel has to pass; cheap enough to be asked for each one."""
        return self._publish.matching(channel)

    def for_subscribe(self, channel: str) -> tuple[SubscribeHook, ...]:
        """The hooks that a subscription to this channel has to pass."""
        return self._subscribe.matching(channel)

    # Asking them

    async def judge_publish(self, client: Client, request: Publish) -> Publish | Refused:
        """Ask the hooks about a publish; gives what is to be published, the same object if nothing changed.

        The caller puts a Refused in the publish's place. Cancelled half-way, nothing was decided.
        """
        asked = PublishRequest(client, request)
        for hook in self.for_publish(request.channel):
            error = await self._ask(hook, asked, client) or self._settle(hook, asked)
            if error is not None:
                return Refused(error, request.id, request.seq)
        return asked.result

    async def judge_reading(self, client: Client, request: Subscribe | History | GetState | GetPresence) -> None:
        """Ask the hooks about any request that reads a channel, as a subscription to the same. Raises WireError."""
        wanted = _as_subscription(request)
        since = None if wanted.since is UNSET else wanted.since
        last = None if wanted.last is UNSET else wanted.last
        asked = SubscribeRequest(client, wanted.channel, since, last, wanted.state, wanted.presence)
        for hook in self.for_subscribe(request.channel):
            error = await self._ask(hook, asked, client)
            if error is not None:
                raise error

    async def connected(self, client: Client) -> None:
        """Ask the hooks about a new client. Raises WireError when it is refused: the caller closes the connection."""
        for hook in self._connect:
            error = await self._ask(hook, client, client, closes=True)
            if error is not None:
                raise error

    async def disconnected(self, client: Client) -> None:
        """Tell all hooks that a client has gone; `client.ended` is to be set before.

        Shielded from cancellation, since the connection's scope is cancelled by now: takes up to `deadline_s` for
        each hook. One that fails is logged; the others are told all the same.
        """
        for hook in self._disconnect:
            await self._ask(hook, client, client, shield=True)

    async def _ask(
        self,
        hook: _Hook,
        about: PublishRequest | SubscribeRequest | Client,
        client: Client,
        *,
        closes: bool = False,
        shield: bool = False,
    ) -> WireError | None:
        """Run one hook under the deadline; gives the error to refuse with, None if it has nothing against it."""
        try:
            with trio.move_on_after(self._deadline_s, shield=shield) as scope:
                await hook(about)
        except Exception as error:
            match _raised(error):
                case [Refuse() as refuse]:
                    return WireError(refuse.code, refuse.message, closes=closes)
            return self._bug(hook, client, error, closes)
        except BaseExceptionGroup as group:
            # It failed while being cancelled from outside: those above wait for the cancellation, and only for that.
            bugs, others = group.split(Exception)
            if bugs is None or others is None:
                raise
            self._bug(hook, client, bugs, closes)
            raise others from None
        if scope.cancelled_caught or trio.current_time() >= scope.deadline:  # a thread, say, is not cut short
            return self._bug(hook, client, f"took longer than {self._deadline_s:g} s", closes)
        return None

    def _settle(self, hook: _Hook, asked: PublishRequest) -> WireError | None:
        try:
            return asked.settle(self._message_bytes_max)
        except Exception as error:
            return self._bug(hook, asked.client, error, closes=False)

    def _bug(self, hook: _Hook, client: Client, problem: BaseException | str, closes: bool) -> WireError:
        """Log a hook's failure, and give the error that tells the client where to find it in the log."""
        reference = self._tokens(4)
        name = f"{hook.__module__}.{hook.__qualname__}" if hasattr(hook, "__qualname__") else repr(hook)
        causes = _raised(problem)
        if all(isinstance(cause, WireError) and cause.code in _PASSING for cause in causes):
            logger.warning("%s: the hook %s raised: %s, reference %s", client.peer, name, causes[0], reference)
        else:
            what = problem if isinstance(problem, str) else "raised"
            trace = problem if isinstance(problem, BaseException) else None
            logger.error("%s: a bug, the hook %s %s, reference %s", client.peer, name, what, reference, exc_info=trace)
        return WireError("internal", f"an internal error, logged with the reference {reference}", closes=closes)


def _as_subscription(request: Subscribe | History | GetState | GetPresence) -> Subscribe:
    """The subscription that would show what a request reads."""
    match request:
        case History():
            last = request.limit if request.since is UNSET else UNSET
            return Subscribe(channel=request.channel, since=request.since, last=last)
        case GetState():
            return Subscribe(channel=request.channel, state=True)
        case GetPresence():
            return Subscribe(channel=request.channel, presence=True)
    return request


def _raised(problem: BaseException | str) -> list[BaseException | str]:
    """The problem, or all that is in it: a nursery wraps what is raised in it."""
    if isinstance(problem, BaseExceptionGroup):
        return [cause for each in problem.exceptions for cause in _raised(each)]
    return [problem]
