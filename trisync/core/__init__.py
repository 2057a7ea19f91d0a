"""The broker and what is around it: group commit, channels, fan-out, cursors, state, who is there, what is kept.

Connections are known only as something with an outbox.
"""
