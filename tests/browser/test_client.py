"""trisync.js without a browser: its own tests under Node, its size, and its package as npm installs it."""

import gzip
import json
import re
import shutil
import tomllib
import urllib.request
from pathlib import Path

import pytest

from tests.browser.node import WEB, installed, needs_node, run_node, run_npm
from tests.harness import PATIENCE_S, server_process

pytestmark = needs_node

CLIENT = Path(__file__).parent / "client"
CLIENT_TESTS = sorted(CLIENT.glob("*.test.mjs"))
GZIPPED_BYTES_MAX = 8000
DOCUMENTS = [WEB / "README.md", WEB / "trisync.d.ts", WEB.parent.parent / "README.md"]


@pytest.mark.parametrize("tests", CLIENT_TESTS, ids=lambda path: path.name.removesuffix(".test.mjs"))
def test_the_client_keeps_its_promises_under_node(tests: Path) -> None:
    said = run_node("--test", "--test-reporter", "tap", tests)
    assert re.search(r"^# pass [1-9]", said, re.MULTILINE), said
    assert re.search(r"^# skipped 0$", said, re.MULTILINE), said


def test_the_client_is_small() -> None:
    size = len(gzip.compress((WEB / "trisync.js").read_bytes(), 9))
    assert size < GZIPPED_BYTES_MAX, f"{size} bytes gzipped"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the client is installed, packed as npm would publish it."""
    folder = tmp_path_factory.mktemp("package")
    [packed] = json.loads(run_npm("pack", WEB, "--json", "--pack-destination", folder, folder=folder))
    assert {file["path"] for file in packed["files"]} == {"package.json", "README.md", "trisync.js", "trisync.d.ts"}
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    run_npm("install", folder / packed["filename"], folder=folder)
    return folder


def test_the_package_as_npm_installs_it_talks_to_a_server(package: Path, tmp_path: Path) -> None:
    websocket = installed("ws") / "wrapper.mjs"
    program = shutil.copy(CLIENT / "installed_program.mjs", package)
    with server_process(tmp_path) as server:
        said = json.loads(run_node(program, f"ws://127.0.0.1:{server.web_port}/", websocket.as_uri()))
    assert said == {
        "heard": [[number + 1, "ada", number] for number in range(20)],
        "history": [19, 20],
        "refusal": [True, "bad_request"],
        "members": ["bob"],
    }


def javascript(document: Path) -> str:
    """The program that a document shows."""
    [program] = re.findall(r"^(?: \* )?```js\n(.*?)^(?: \* )?```$", document.read_text(), re.MULTILINE | re.DOTALL)
    return re.sub(r"^ \* ?", "", program, flags=re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_programs_that_documents_show_run(document: Path, package: Path, tmp_path: Path) -> None:
    websocket = (installed("ws") / "wrapper.mjs").as_uri()
    program = javascript(document)
    assert program.count('"/trisync.js"') + program.count('from "trisync"') == 1
    program = program.replace('"/trisync.js"', '"trisync"').replace("ws://localhost:8000/", "SERVER")
    with server_process(tmp_path) as server:
        (package / "program.mjs").write_text(program.replace("SERVER", f"ws://127.0.0.1:{server.web_port}/"))
        (package / "main.mjs").write_text(
            f"globalThis.WebSocket = (await import({json.dumps(websocket)})).WebSocket;\n"
            'await import("./program.mjs");\nconsole.log("done");\nprocess.exit(0);\n'
        )
        said = run_node("main.mjs", folder=package)
    assert "hello" in said
    assert said.endswith("done\n")


def test_the_server_hands_out_the_client_with_its_types(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        for name, kind in (("trisync.js", "text/javascript"), ("trisync.d.ts", "text/plain")):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.web_port}/{name}", timeout=PATIENCE_S) as answer:
                assert answer.headers.get_content_type() == kind
                assert answer.read() == (WEB / name).read_bytes()


def test_its_types_say_what_it_does(package: Path) -> None:
    compiler = installed("typescript") / "bin" / "tsc"
    shutil.copy(CLIENT / "typed_program.ts", package)
    options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom"]
    run_node(compiler, *options, "typed_program.ts", folder=package)


def test_the_page_keeps_to_the_types_of_the_client(tmp_path: Path) -> None:
    compiler = installed("typescript") / "bin" / "tsc"
    for file in WEB.iterdir():
        if file.suffix in (".js", ".ts") and file.name != "trisync.js":
            shutil.copy(file, tmp_path)
    options = ["--noEmit", "--allowJs", "--strict", "--useUnknownInCatchVariables", "false"]
    target = ["--target", "es2023", "--lib", "es2023,dom,dom.iterable", "--module", "esnext"]
    run_node(compiler, *options, *target, "--moduleResolution", "bundler", "app.js", folder=tmp_path)


def test_its_types_name_everything_that_it_exports() -> None:
    exported = re.findall(r"^export (?:class|const) (\w+)", (WEB / "trisync.js").read_text(), re.MULTILINE)
    typed = re.findall(r"^export (?:class|function) (\w+)", (WEB / "trisync.d.ts").read_text(), re.MULTILINE)
    assert sorted(exported) == sorted(typed)


def test_the_package_has_the_version_of_the_server() -> None:
    project = tomllib.loads((WEB.parent.parent / "pyproject.toml").read_text())["project"]
    package = json.loads((WEB / "package.json").read_text())
    assert (package["version"], package["license"]) == (project["version"], project["license"])
