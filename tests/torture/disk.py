"""What a disk is left with when the power goes: what was synced, and of the rest whatever it pleases.

Pure bookkeeping over the calls that SQLite makes of its VFS (powercut_vfs.py records them). Between two syncs, each
write to a file, and each truncation, may have happened, or not, or partly, sector by sector. Names that were given or
taken away survive in their order, as journaling file systems keep it. What a write does not cover it does not damage:
SQLite takes this for granted too (SQLITE_IOCAP_POWERSAFE_OVERWRITE).
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

SECTOR_BYTES = 512


class Create(NamedTuple):
    """A name was given to a new, empty file."""

    file: str


class Write(NamedTuple):
    """Bytes were written."""

    file: str
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """A file was cut to so many bytes."""

    file: str
    size: int


class Sync(NamedTuple):
    """A file's content was made durable; with a name that is still new, its folder too."""

    file: str


class Delete(NamedTuple):
    """A name was taken away, durably or not."""

    file: str
    durable: bool


class Mark(NamedTuple):
    """Nothing that the disk knows of: what the server did between two calls."""

    name: str
    value: int | str


Event = Create | Write | Truncate | Sync | Delete | Mark


class _Content:
    """A file's bytes: the durable ones, and what came behind."""

    def __init__(self, durable: bytes = b"") -> None:
        self.durable = bytearray(durable)
        self.pending: list[Write | Truncate] = []

    def settle(self) -> None:
        """All is durable now."""
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()

    def after(self, survives: Callable[[Write | Truncate], Sequence[Write | Truncate]]) -> bytes:
        """The bytes that there are when of each pending change only a part survives."""
        content = bytearray(self.durable)
        for change in self.pending:
            for part in survives(change):
                _apply(content, part)
        return bytes(content)


def _apply(content: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
    else:
        content.extend(bytes(max(0, change.offset - len(content))))
        content[change.offset : change.offset + len(change.data)] = change.data


class Disk:
    """A folder on a disk. It begins with files that are durable."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._durable = {name: _Content(content) for name, content in files.items()}
        self._current = dict(self._durable)
        self._renamings: list[tuple[str, _Content | None]] = []
        """Names given and taken away that the folder may not have durably yet."""

    def apply(self, event: Event) -> None:
        """Something was done to the folder."""
        match event:
            case Create(name):
                self._name(name, _Content())
            case Delete(name, durable):
                self._name(name, None)
                if durable:
                    self._settle_names()
            case Sync(name):
                content = self._current[name]
                content.settle()
                if any(named is content for _, named in self._renamings):
                    self._settle_names()
            case Write() | Truncate():
                self._current[event.file].pending.append(event)
            case Mark():
                pass

    def _name(self, name: str, content: _Content | None) -> None:
        self._renamings.append((name, content))
        _rename(self._current, name, content)

    def _settle_names(self) -> None:
        for name, content in self._renamings:
            _rename(self._durable, name, content)
        self._renamings.clear()

    @property
    def unsynced(self) -> bool:
        """Whether there is anything that a power cut may take."""
        return bool(self._renamings) or any(content.pending for content in self._current.values())

    def after_power_cut(self, chance: random.Random) -> dict[str, bytes]:
        """The files that there may be when the power comes back."""
        kept = chance.choice((0.0, 0.5, 0.9, 1.0))
        torn = chance.choice((0.0, 0.3))

        def survives(change: Write | Truncate) -> Sequence[Write | Truncate]:
            if chance.random() >= kept:
                return ()
            if isinstance(change, Truncate) or chance.random() >= torn:
                return (change,)
            return [part for part in _sectors(change) if chance.random() < 0.5]

        names = dict(self._durable)
        for name, content in self._renamings[: chance.randint(0, len(self._renamings))]:
            _rename(names, name, content)
        return {name: content.after(survives) for name, content in names.items()}


def _rename(names: dict[str, _Content], name: str, content: _Content | None) -> None:
    if content is None:
        names.pop(name, None)
    else:
        names[name] = content


def _sectors(write: Write) -> list[Write]:
    """A write in the pieces that a disk writes whole."""
    end = write.offset + len(write.data)
    starts = [write.offset, *range((write.offset // SECTOR_BYTES + 1) * SECTOR_BYTES, end, SECTOR_BYTES)]
    pieces = zip(starts, [*starts[1:], end], strict=True)
    return [Write(write.file, start, write.data[start - write.offset : stop - write.offset]) for start, stop in pieces]
