"""See inside: one image followed through a detector, with all that its attention looked at."""

from querybox.inspect.comparison import Comparison
from querybox.inspect.stages import Stage
from querybox.inspect.tracing import Trace, trace

__all__ = ["Comparison", "Stage", "Trace", "trace"]
