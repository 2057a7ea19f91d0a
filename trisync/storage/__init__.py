"""The durable log behind one interface (log.py), SQLite beneath it, its backups, and the caches in front of it.

Who reads and publishes is not known here.
"""
