"""A person's conversation at netcat or telnet: what they type, as requests of an ordinary session."""

import trio

from trisync.sessions.connection import Connection
from trisync.sessions.session import TURN_REQUESTS, Session
from trisync.wire.console import Console, GoOnInJson, Quit, Say
from trisync.wire.errors import WireError
from trisync.wire.framing import CONSOLE, LINES
from trisync.wire.protocol import Publish
from trisync.wire.telnet import edited


class ConsoleSession:
    """A person's conversation: their lines become requests of an ordinary session."""

    def __init__(self, session: Session, connection: Connection) -> None:
        self._session = session
        self._connection = connection
        self._console = Console()
        session.speak(CONSOLE, lambda payload: self._console.render(payload).encode())

    async def receive(self, lines: list[bytes]) -> list[bytes] | None:
        """Handle typed lines. After a `/json` returns those that follow it, which are for the session itself."""
        for number, line in enumerate(lines, start=1):
            if number % TURN_REQUESTS == 0:
                await trio.lowlevel.checkpoint()
            try:
                typed = edited(line).decode()
            except UnicodeDecodeError:
                await self._connection.answered()
                self._connection.refuse(WireError("bad_json", "that was not UTF-8"))
                continue
            for action in self._console.read(typed):
                if type(action) is not Publish:
                    # People expect one thing after the other: what they said is seen before what they ask.
                    await self._connection.answered()
                match action:
                    case Say(text):
                        await self._connection.room()
                        self._connection.outbox.write(text.encode())
                    case GoOnInJson():
                        self._session.speak(LINES)
                        return lines[number:]
                    case Quit():
                        self._connection.end("the person left")
                        return None
                    case _:
                        await self._session.handle(action)
        return None
