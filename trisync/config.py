"""Reading the settings: defaults, then a TOML file, then TRISYNC_* variables, then the command line.

The settings themselves, with their defaults and reasons, are in settings.py; nothing is repeated here.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from trisync.settings import Settings
from trisync.wire.protocol import in_words

PREFIX = "TRISYNC_"
OTHER_VARIABLES = {"TRISYNC_CONFIG", "TRISYNC_URL", "TRISYNC_WEB"}
"""Variables of the command line that are no settings of the server."""

_TYPES = get_type_hints(Settings)  # plain ones, in which the words of a Literal are in order: msgspec sorts them


class ConfigError(ValueError):
    """A setting cannot be had; the message says which, where it came from, and what is wrong."""


def fields() -> dict[str, msgspec.inspect.Field]:
    """The settings by name, with type, default and description."""
    kind = msgspec.inspect.type_info(Settings)
    assert isinstance(kind, msgspec.inspect.StructType)
    return {field.name: field for field in kind.fields}


def description(field: msgspec.inspect.Field) -> str:
    """A setting's help text."""
    assert isinstance(field.type, msgspec.inspect.Metadata)
    extra = field.type.extra_json_schema or {}
    return str(extra["description"])


def default(field: msgspec.inspect.Field) -> Any:
    """A setting's default."""
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def choices(field: msgspec.inspect.Field) -> list[str]:
    """What a setting may be, where that is one of a few words; else nothing."""
    return list(get_args(_TYPES[field.name])) if get_origin(_TYPES[field.name]) is Literal else []


def is_list(field: msgspec.inspect.Field) -> bool:
    """Whether a setting is a list; on the command line repeated, in the environment separated by commas."""
    return get_origin(_TYPES[field.name]) is list


def load_settings(
    given: Mapping[str, Any], environ: Mapping[str, str], file: Path | None = None, base: Settings | None = None
) -> Settings:
    """The settings in force. `given` are the command line's, by name, `base` a program's. Raises ConfigError."""
    values: dict[str, Any] = {} if base is None else msgspec.structs.asdict(base)
    if file is not None:
        values |= _checked(_read_file(file), str(file), strict=True)
    values |= _checked(_read_environment(environ), "the environment", strict=False)
    values |= _checked(given, "the command line", strict=False)
    return msgspec.convert(values, Settings)


def check_settings(settings: Settings) -> None:
    """Raise ConfigError where a program's settings are not what they may be: making them checks no types or ranges."""
    _checked(msgspec.structs.asdict(settings), "the settings", strict=True)


def _checked(values: Mapping[str, Any], source: str, *, strict: bool) -> dict[str, Any]:
    for name, field in fields().items():
        allowed = choices(field)
        if allowed and values.get(name, allowed[0]) not in allowed:
            raise ConfigError(f"{source}: {name} is {', '.join(allowed[:-1])} or {allowed[-1]}, not {values[name]!r}")
    try:
        settings = msgspec.convert(values, Settings, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_with_name_first(error)}") from None
    return {name: getattr(settings, name) for name in values}


def _with_name_first(error: msgspec.ValidationError) -> str:
    """What msgspec says of a setting, with its name first."""
    problem, _, name = in_words(error).partition(" - at ")
    if name:
        return f"{name}: {problem[0].lower()}{problem[1:]}"
    return problem.replace("Object contains unknown field", "there is no setting")


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {getattr(error, 'strerror', None) or error}") from None


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    known = fields()
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in known:
            raise ConfigError(f"the environment: {variable} is no setting; trisync serve --help lists them")
        values[name] = [part.strip() for part in text.split(",") if part.strip()] if is_list(known[name]) else text
    return values
