"""See inside: one image followed through a detector, with all that its attention looked at."""

from querybox.inspect.annotated import traces
from querybox.inspect.attention import AttentionMaps, AttentionPoints
from querybox.inspect.comparison import Comparison
from querybox.inspect.report import write_page
from querybox.inspect.stages import Stage
from querybox.inspect.tracing import Trace, trace

__all__ = [
    "AttentionMaps",
    "AttentionPoints",
    "Comparison",
    "Stage",
    "Trace",
    "trace",
    "traces",
    "write_page",
]
