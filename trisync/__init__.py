"""trisync: a reliable real-time data synchronisation server."""

__version__ = "0.1.0"
