"""What the commands of this folder share: the types of their options, and the files they are told to write."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

SHOWN = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}
"""How click shows the help of these commands."""

STANDARD_OUTPUT = "standard output"

NUMBER_MAX = 1e9
"""Seconds of 30 years, whose microseconds are whole numbers everywhere; and more than any rate."""


LEAST = 0.001
"""Of seconds, rates and the like that are not 0: with far less, the times between are no numbers any more."""


class Number(click.FloatRange):
    """A number with a value: neither infinite nor none, which click takes for numbers too, nor past these bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not abs(number) <= NUMBER_MAX:
            self.fail(f"{value} is not a number up to {NUMBER_MAX:,.0f}.", param, ctx)
        if 0 < number < LEAST:
            self.fail(f"{value} is neither 0 nor at least {LEAST}.", param, ctx)
        return number


class OutputFile(click.Path):
    """A file to be written at the end. It is refused at once where that is bound to fail: a run can take hours."""

    def __init__(self, *, allow_dash: bool = False) -> None:
        super().__init__(path_type=Path, dir_okay=False, writable=True, allow_dash=allow_dash)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if not os.fspath(value):
            self.fail("a file needs a name", param, ctx)
        if os.fspath(value) == "-" and not self.allow_dash:
            self.fail("standard output has the figures; name a file", param, ctx)
        path = super().convert(value, param, ctx)
        assert isinstance(path, Path)
        try:
            exists = path.exists()
        except OSError as error:
            self.fail(f"{error.strerror}: {str(path)!r}", param, ctx)
        if str(path) != "-" and not exists:
            if not path.parent.is_dir():
                self.fail(f"there is no folder {str(path.parent)!r}", param, ctx)
            if not os.access(path.parent, os.W_OK | os.X_OK):
                self.fail(f"the folder {str(path.parent)!r} is not writable", param, ctx)
        return path


def name_of(path: Path) -> str:
    """What a file to be written is called in what is said about it."""
    return STANDARD_OUTPUT if str(path) == "-" else str(path)


def write_output(path: Path | None, content: Callable[[], bytes]) -> str | None:
    """Write a file where there is one to be written, or standard output for -. Returns what went wrong, if anything.

    It does not raise OSError: what cannot be written must not take the figures along that are printed next.
    """
    if path is None:
        return None

    def write() -> None:
        data = content()
        file = Path(os.path.realpath(path))
        # Whether it exists is asked of `path`: what /dev/stdout leads to may be a pipe, which has no name.
        if str(path) != "-" and (file.is_file() or not path.exists()) and os.access(file.parent, os.W_OK):
            _replace(file, data)
            return
        with click.open_file(str(path), "wb") as stream:
            stream.write(data)
            stream.flush()

    return unwritten(name_of(path), write)


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole, or leave what was there: an earlier report is worth more than half of this one."""
    part = path.with_name(f".{os.getpid()}.part")
    try:
        part.write_bytes(data)
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def unwritten(name: str, write: Callable[[], None]) -> str | None:
    """Write something. Returns what went wrong, if anything, also that Ctrl-C ended it: what reads a pipe may wait."""
    try:
        write()
    except OSError as error:
        return f"{name} was not written: {error.strerror or error}"
    except KeyboardInterrupt:
        return f"{name} was not written: interrupted"
    return None


class Output(Console):
    """Where figures are printed. Raises BrokenPipeError where nobody reads them; rich would exit with a 1."""

    def on_broken_pipe(self) -> None:
        # What is left in the buffer goes nowhere: Python would try it again at its end, and exit with a 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
