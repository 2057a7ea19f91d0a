"""Which version this is; pyproject.toml says it, and nothing else."""

from importlib.metadata import version

__version__ = version("trisync")
