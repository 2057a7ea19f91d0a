"""What is said and how, without any I/O: messages, errors, framings, the dialects of TCP, and HTTP's rules.

Nothing here knows Trio, a socket or a disk: every rule is tested with bytes alone.
"""
