#!/usr/bin/env python3
"""Runs the server and its clients in simulated worlds; try --help. The worlds themselves are in tests/simulation/."""

if __name__ == "__main__":
    from launcher import launch

    launch(
        "tests.simulation.cli:simulate_command",
        needed=("trio", "click", "msgspec", "h11", "sqlite_utils", "cachetools", "trio_websocket"),
    )
