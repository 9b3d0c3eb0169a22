"""Tool calls: how models write them, how they are read as they come, and grammars that make a model write them.

Knows nothing about requests, tokens or HTTP.
"""

from ernie45.server.tools.formats import TOOL_FORMATS, ToolFormat, tool_format
from ernie45.server.tools.stream import CallArguments, CallStart, Content, Event, ToolCallStream, ToolUse

__all__ = [
    "TOOL_FORMATS",
    "CallArguments",
    "CallStart",
    "Content",
    "Event",
    "ToolCallStream",
    "ToolFormat",
    "ToolUse",
    "tool_format",
]
