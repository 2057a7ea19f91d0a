#!/usr/bin/env python3
"""Compares trisync's speed with its peers'; try --help. The tool itself is trisync/loadtest/."""

if __name__ == "__main__":
    from launcher import launch

    launch("trisync.loadtest.compare_cli:compare_command", needed=("trio", "click", "rich", "msgspec", "hdrh"))
