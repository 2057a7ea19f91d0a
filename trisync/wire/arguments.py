"""What programs give to the client and to the server that they embed, looked at as the wire would.

Here a mistake is the program's, and an exception at its call. What comes over the wire is protocol.py's business.
"""

from trisync.wire.protocol import shortened


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raises TypeError for what a program gives that is no integer, and ValueError for what is out of range."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is an integer, not {value!r}")
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"{least}-{most}"
        raise ValueError(f"{name} is {allowed}, not {value}")


def check_seconds(name: str, value: object) -> None:
    """Raises TypeError for what a program gives that is no number, and ValueError for one below 0, and NaN."""
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if not value >= 0:
        raise ValueError(f"{name} is at least 0, not {value}")


def check_text(name: str, value: object) -> None:
    """Raises TypeError for what a program gives that is no string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is a string, not {shortened(repr(value), 200)}")


def check_utf8(name: str, value: str) -> None:
    """As check_text(), and raises ValueError for a string with half a surrogate pair, which cannot be sent."""
    check_text(name, value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is UTF-8, not {shortened(repr(value), 200)}") from None
