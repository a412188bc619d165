"""The command line. Nothing here imports torch before it must: ``--help`` answers at once."""

from querybox.cli.main import main

__all__ = ["main"]
