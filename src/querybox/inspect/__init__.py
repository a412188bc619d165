"""Inspection of a detector: traces of single images, their attention, and an HTML page that shows them."""

from querybox.inspect.annotated import traces
from querybox.inspect.attention import AttentionMaps, AttentionPoints
from querybox.inspect.comparison import Comparison
from querybox.inspect.page import write_page
from querybox.inspect.queries import QueryView, query_view
from querybox.inspect.stages import Stage
from querybox.inspect.tracing import Trace, trace

__all__ = [
    "AttentionMaps",
    "AttentionPoints",
    "Comparison",
    "QueryView",
    "Stage",
    "Trace",
    "query_view",
    "trace",
    "traces",
    "write_page",
]
