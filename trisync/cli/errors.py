"""What the commands do with errors: one line for a person."""

INTERRUPTED = 130
"""Exit status, as a shell has it of a program that Ctrl-C has ended."""


def first_of(error: BaseException) -> BaseException:
    """The first exception in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def in_words(error: BaseException) -> str:
    """What an error says, without the number of a system's one, and with the file that it is about."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
