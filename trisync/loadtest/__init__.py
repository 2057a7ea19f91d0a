"""The load-test tool: it drives a running server over its public doors, and checks while it measures.

From the ground up: `plan` (what a run is told, and the orders it is made of), `transports` (bytes to messages),
`problems`, `marks`, `measuring` and `trails` (what is counted and proved), `links`, `clients`, `publishers` with their
`pacing`, and `log_readers` (connections and what they do), `mischief` (what befalls them), `worker` (a process full of
them), `processes`, `crew`, `target`, `machine` and `recording` (all processes, the server, what it costs, the figures),
`scenarios` and their `verdict`, `run`, `results`, `report_words`, `report_terminal` and `report_html` with its `plots`,
`options`, `scenario_options`, `endings` and `cli`. Beside them the comparison with other servers: `peer_dialects`,
`peer_clients`, `peer_load` and `peer_servers`, `compare` and `compare_cli`. Nothing of these knows the server's
insides, nor does `client_speed`, which is about the Python client; only `large_log`, which fills a log by the million,
writes one without a server.
"""
