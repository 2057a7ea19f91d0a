"""`python -m trisync`."""

from trisync.cli import main

main(prog_name="trisync")
