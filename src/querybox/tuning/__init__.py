"""The fastest engine for a model on this machine: finding it, remembering it, and loading it."""

from querybox.tuning.choice import Choice, load_tuned
from querybox.tuning.search import Tuning, tune

__all__ = ["Choice", "Tuning", "load_tuned", "tune"]
