"""One client: its connection and that one's end, its conversation, and the hooks of a program that are asked about it.

Whence its bytes come is the doors' business.
"""
