"""The command line. Heavy imports such as torch are deferred, so that ``--help`` is fast."""

from querybox.cli.main import main

__all__ = ["main"]
