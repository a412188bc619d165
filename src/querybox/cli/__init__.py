"""The command line: ``querybox train | evaluate | predict | export | info``. Nothing here imports torch before it must."""

from querybox.cli.main import main

__all__ = ["main"]
