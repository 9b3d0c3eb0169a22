"""The ways in which models write tool calls, by the names that FastDeploy, vLLM and SGLang give to their parsers.

Knows nothing about how a call is read.
"""

import difflib
from dataclasses import dataclass

from ernie45.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """A call is a JSON object with name and arguments between two tags.

    before, after, between  white space that the model puts between the tags and the object, and between two calls; only
                    grammars need it.
    """

    start: str = "<tool_call>"
    end: str = "</tool_call>"
    before: str = "\n"
    after: str = "\n"
    between: str = "\n"


_TOOL_CALL = ToolFormat()

# FastDeploy: ernie-x1, ernie-45-vl-thinking. vLLM: ernie45, hermes. SGLang: qwen, qwen25.
TOOL_FORMATS: dict[str, ToolFormat] = {
    "ernie45": _TOOL_CALL,
    "ernie-x1": _TOOL_CALL,
    "ernie-45-vl": _TOOL_CALL,
    "ernie-45-vl-thinking": _TOOL_CALL,
    "hermes": _TOOL_CALL,
    "qwen": _TOOL_CALL,
    "qwen25": _TOOL_CALL,
    "longcat": ToolFormat(start="<longcat_tool_call>", end="</longcat_tool_call>"),
}


def tool_format(name: str) -> ToolFormat:
    """The format of a parser's name. ConfigError for one that is not known."""
    if name in TOOL_FORMATS:
        return TOOL_FORMATS[name]
    near = difflib.get_close_matches(name, TOOL_FORMATS, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; leave it out for ernie45"
    raise ConfigError(f"tool_call_parser ({name!r}) must be one of {', '.join(TOOL_FORMATS)}{hint}")
