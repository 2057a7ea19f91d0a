#!/usr/bin/env python3
"""Measures how fast the Python client is; try --help. The tool itself is trisync/loadtest/client_speed.py."""

if __name__ == "__main__":
    from launcher import launch

    needed = ("anyio", "click", "msgspec", "rich", "trio", "wsproto")
    launch("trisync.loadtest.client_speed:client_speed_command", needed=needed)
