#!/usr/bin/env python3
"""Load-tests a server; try --help. The tool itself is trisync/loadtest/, also to be had as `trisync loadtest`."""

if __name__ == "__main__":
    from launcher import launch

    launch("trisync.loadtest.cli:loadtest_command", needed=("trio", "click", "rich", "msgspec", "hdrh"))
