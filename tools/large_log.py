#!/usr/bin/env python3
"""Measures what a large log costs, beside an empty one; try --help. The tool itself is trisync/loadtest/."""

if __name__ == "__main__":
    from launcher import launch

    launch("trisync.loadtest.large_log:large_log_command", needed=("trio", "click", "rich", "msgspec", "sqlite_utils"))
