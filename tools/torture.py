#!/usr/bin/env python3
"""Kills a real server, and cuts its power; try --help. The tool itself is tests/torture/."""

if __name__ == "__main__":
    from launcher import launch

    launch(
        "tests.torture.cli:torture_command",
        needed=("trio", "click", "msgspec", "sqlite_utils", "apsw"),
        makers="tools/test",
    )
