"""The settings: where they come from, which is stronger, and that they are all documented."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from trisync import config
from trisync.cli import main
from trisync.config import ConfigError, load_settings
from trisync.settings import Settings

FIELDS = config.fields()
README = Path(__file__).parent.parent / "README.md"


def problem(
    given: dict[str, Any] | None = None, environ: dict[str, str] | None = None, file: Path | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(given or {}, environ or {}, file)
    return str(caught.value)


def test_without_anything_said_the_defaults_hold() -> None:
    assert load_settings({}, {}) == Settings()


def test_the_command_line_is_stronger_than_the_environment_and_that_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "trisync.toml"
    file.write_text('tcp_port = 1\nweb_port = 1\nhost = "::1"\norigins = ["https://file.example"]\n')
    environ = {
        "TRISYNC_TCP_PORT": "2",
        "TRISYNC_WEB_PORT": "2",
        "TRISYNC_ORIGINS": "https://a.example, https://b.example",
    }
    found = load_settings({"tcp_port": "3"}, environ, file)
    assert (found.tcp_port, found.web_port, found.host) == (3, 2, "::1")
    assert found.origins == ["https://a.example", "https://b.example"]
    assert load_settings({"origins": ["https://c.example"]}, environ, file).origins == ["https://c.example"]


def test_every_setting_can_be_had_from_each_source(tmp_path: Path) -> None:
    for name, field in FIELDS.items():
        default = config.default(field)
        text = ",".join(default) if isinstance(default, list) else str(default)
        file = tmp_path / "one.toml"
        file.write_text(
            msgspec.toml.encode({name: default}).decode() if _has_toml_writer() else f"{name} = {default!r}\n"
        )
        assert getattr(load_settings({}, {}, file), name) == default
        if text:
            assert getattr(load_settings({}, {f"TRISYNC_{name.upper()}": text}), name) == default
            given = default if isinstance(default, list) else text
            assert getattr(load_settings({name: given}, {}), name) == default


def _has_toml_writer() -> bool:
    try:
        msgspec.toml.encode({})
    except ImportError:
        return False
    return True


def test_a_variable_set_to_nothing_is_an_empty_list() -> None:
    assert load_settings({}, {"TRISYNC_ORIGINS": ""}).origins == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tcp_port", "65536"),
        ("tcp_port", "-1"),
        ("tcp_port", "http"),
        ("durability", "sometimes"),
        ("message_bytes_max", "1023"),
        ("message_bytes_max", str(16 * 1024 * 1024)),
        ("silent_s", "0"),
        ("silent_s", "soon"),
        ("silent_s", "nan"),
        ("ping_s", "inf"),
        ("connections_max", "0"),
        ("busy_ms", "1.5"),
        ("log_level", "loud"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_where_it_came_from(tmp_path: Path, name: str, value: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(f"{name} = {value}\n" if re.fullmatch(r"-?[\d.]+|nan|inf", value) else f'{name} = "{value}"\n')
    for text, source in (
        (problem(given={name: value}), "the command line"),
        (problem(environ={f"TRISYNC_{name.upper()}": value}), "the environment"),
        (problem(file=file), str(file)),
    ):
        assert text.startswith(f"{source}: ")
        assert name in text


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("durability", "sometimes", "full or normal"), ("log_level", "INFO", "debug, info, warning or error")],
)
def test_who_names_none_of_a_few_words_is_told_which_there_are(
    tmp_path: Path, name: str, value: str, allowed: str
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(f'{name} = "{value}"\n')
    expected = f"{name} is {allowed}, not {value!r}"
    assert problem(given={name: value}) == f"the command line: {expected}"
    assert problem(environ={f"TRISYNC_{name.upper()}": value}) == f"the environment: {expected}"
    assert problem(file=file) == f"{file}: {expected}"
    file.write_text(f"{name} = 7\n")
    assert problem(file=file) == f"{file}: {name} is {allowed}, not 7"


@pytest.mark.parametrize("origin", ["https://app.example/", "https://app.example/chat", "*"])
def test_an_origin_that_nothing_would_match_is_refused_however_it_is_given(tmp_path: Path, origin: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(f'origins = ["https://right.example", "{origin}"]\n')
    for text, source in (
        (problem(given={"origins": [origin]}), "the command line"),
        (problem(environ={"TRISYNC_ORIGINS": f"https://right.example,{origin}"}), "the environment"),
        (problem(file=file), str(file)),
    ):
        assert text.startswith(f"{source}: origins: {origin!r}: ")
    with pytest.raises(ValueError, match="origins: "):
        Settings(origins=[origin])


def test_a_wrong_value_is_refused_even_where_a_stronger_one_is_right() -> None:
    assert problem({"tcp_port": "1"}, {"TRISYNC_TCP_PORT": "x"}).startswith("the environment: ")


def test_a_file_says_numbers_as_numbers(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('tcp_port = "2345"\n')
    assert "tcp_port" in problem(file=file)
    file.write_text("silent_s = 5\n")
    assert load_settings({}, {}, file).silent_s == 5.0


def test_a_file_is_utf_8_whatever_the_locale_is(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('data = "dä"\n', "utf-8")
    program = "from pathlib import Path; from trisync.config import *; "
    program += f"print(ascii(load_settings({{}}, {{}}, Path({str(file)!r})).data))"
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == ascii("dä") + "\n"


@pytest.mark.parametrize("text", [b"tcp_port = ", b"tcp_prot = 1\n", b"\xff\xfe", b"[server]\ntcp_port = 1\n"])
def test_a_file_that_cannot_be_understood_is_named(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(text)
    assert problem(file=file).startswith(f"{file}: ")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "nowhere.toml" in problem(file=tmp_path / "nowhere.toml")


def test_a_variable_that_is_no_setting_is_refused_and_not_ignored() -> None:
    text = problem(environ={"TRISYNC_TCP_PROT": "1"})
    assert "TRISYNC_TCP_PROT" in text
    assert "--help" in text


def test_variables_of_other_programs_and_of_the_command_line_are_let_be() -> None:
    environ = {"PATH": "/bin", "TRISYNC_CONFIG": "x.toml", "TRISYNC_URL": "tcp://a:1", "XTRISYNC_TCP_PORT": "x"}
    assert load_settings({}, environ) == Settings()


# What is documented


def test_every_setting_has_a_description_on_one_line() -> None:
    for name, field in FIELDS.items():
        text = config.description(field)
        assert text, name
        assert "\n" not in text
        assert not text.endswith("."), f"{name}: the help adds the full stop"


def test_times_and_sizes_say_their_unit() -> None:
    for name, field in FIELDS.items():
        if isinstance(config.default(field), float):
            assert name.endswith("_s"), f"{name} is a time in seconds"


def serve_help() -> str:
    result = CliRunner().invoke(main, ["serve", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.output


def test_the_help_shows_every_setting_with_its_description() -> None:
    text = " ".join(serve_help().split())
    for name, field in FIELDS.items():
        assert f"--{name.replace('_', '-')} " in text
        assert " ".join(config.description(field).split()) in text, name


def test_the_help_writes_defaults_as_they_can_be_typed() -> None:
    text = " ".join(serve_help().split())
    for name, field in FIELDS.items():
        match = re.search(rf"--{name.replace('_', '-')} \S+ .*?\[([^\]]*)\]", text)
        assert match is not None, name
        shown, default = match[1], config.default(field)
        if isinstance(default, list):
            assert shown == "none"
        else:
            assert getattr(load_settings({name: shown}, {}), name) == default
            assert not re.search(r"\de[+-]?\d", shown), f"{name}: {shown} is no number for people"


def test_the_help_shows_the_words_that_a_setting_may_be() -> None:
    text = serve_help()
    assert "--durability [full|normal] " in text
    assert "--log-level [debug|info|warning|error]\n" in text


def test_the_help_and_the_readme_say_which_settings_may_be_given_several_times() -> None:
    lists = [name for name, field in FIELDS.items() if config.is_list(field)]
    _, *options = re.split(r"\n  (?=-)", serve_help())
    said = [option.split()[0] for option in options if "may be given several times" in " ".join(option.split())]
    assert said == [f"--{name}" for name in lists] != []
    (passage,) = (each for each in README.read_text().split("\n\n") if "is an option that may be given several" in each)
    assert re.findall(r"`(\w+)`", passage.partition("A list, ")[2])[: len(lists)] == lists


@pytest.mark.parametrize(
    ("port", "said"),
    [("x", "Invalid value for '--tcp-port': 'x' is not a valid integer."), ("70000", "the command line: tcp_port: ")],
)
def test_a_wrong_option_is_told_in_one_line_and_nothing_starts(tmp_path: Path, port: str, said: str) -> None:
    result = CliRunner().invoke(main, ["serve", "--data", str(tmp_path / "data"), "--tcp-port", port])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith(f"Error: {said}")
    assert not (tmp_path / "data").exists()


def readme_settings() -> list[tuple[str, str, str]]:
    """The rows of the table of settings: name, default, description."""
    rows = []
    for line in README.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3 and re.fullmatch(r"`[a-z_]+`", cells[0]):
            rows.append((cells[0].strip("`"), cells[1].strip("`"), cells[2]))
    return rows


@pytest.mark.skipif(not README.exists(), reason="there is no README.md")
def test_readme_lists_the_settings_as_they_are() -> None:
    rows = readme_settings()
    assert [name for name, _, _ in rows] == list(FIELDS), "README.md's table has one row a setting, in their order"
    for name, shown, description in rows:
        field = FIELDS[name]
        default = config.default(field)
        expected = "none" if default == [] else default
        assert type(expected)(shown) == expected, f"README.md: {name} is {default}"
        assert description.startswith(config.description(field)), f"README.md: {name}"
