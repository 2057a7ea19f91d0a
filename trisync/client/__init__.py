"""Client libraries for Python."""
