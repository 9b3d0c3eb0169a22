"""Renders a conversation to the prompt's text with a jinja template: the checkpoint's own, or the one built in here.

Knows nothing about token ids or pixels.
"""

import copy
import datetime
import json
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ernie45.config.errors import CheckpointError, RequestError
from ernie45.processor.added_tokens import NAMED_TOKENS

# The format the released model was trained with. Thoughts are shown only after the last user message: of a finished answer
# at the end of the conversation (training), or of the tool calls that lead to the answer still to come. Older thoughts are
# dropped. So the text of a conversation with its answer always begins with the text of its prompt.
BUILT_IN_TEMPLATE = r"""
{%- set count = namespace(picture=0, video=0, last_user=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set count.last_user = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- macro text_of(content) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content %}
        {%- for part in content %}
            {%- if part.type == 'text' %}
                {{- part.text }}
            {%- elif part.type == 'image_url' %}
                {%- set count.picture = count.picture + 1 %}
                {{- 'Picture ' ~ count.picture ~ ':<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}
            {%- elif part.type == 'video_url' %}
                {%- set count.video = count.video + 1 %}
                {{- 'Video ' ~ count.video ~ ':<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{{- '<|begin_of_sentence|>' }}
{%- set has_system = messages and messages[0].role == 'system' %}
{%- if has_system %}
    {{- text_of(messages[0].content) ~ '\n' }}
{%- endif %}
{%- if tools %}
    {{- '<tool_list>\n' ~ tools | tojson ~ '\n</tool_list>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' and not loop.first %}
        {{- raise_exception('a system message must be the first message') }}
    {%- elif message.role == 'user' %}
        {{- 'User: ' ~ text_of(message.content) }}
    {%- elif message.role == 'tool' %}
        {{- 'User: ' if loop.first or messages[loop.index0 - 1].role != 'tool' }}
        {{- '<tool_output>\n' ~ text_of(message.content) ~ '\n</tool_output>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '\nAssistant: ' }}
        {%- if loop.index0 > count.last_user %}
            {{- '<think>\n' ~ (message.reasoning_content or '') | trim ~ '\n</think>\n\n' }}
        {%- endif %}
        {{- text_of(message.content) }}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>\n' ~ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
            {{- '\n</tool_call>\n' }}
        {%- endfor %}
        {{- '<|end_of_sentence|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '\nAssistant: <think>' }}
    {{- '\n\n</think>\n\n' if not enable_thinking }}
{%- endif %}
"""

_BAD_RENDERING = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
_OWN = {"messages", "tools", "add_generation_prompt", "enable_thinking"}


class ChatTemplate:
    """A compiled chat template. It runs in jinja's immutable sandbox: a checkpoint's template is a program of a stranger."""

    def __init__(self, source: str = BUILT_IN_TEMPLATE, named_tokens: dict[str, str] | None = None) -> None:
        """named_tokens: bos_token, eos_token, ... of `tokenizer_config.json`, at hand to the template by these names.

        variables: what the template reads besides. arguments: values for some of them, see `with_arguments`.
        """
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self.source = source
        self.named_tokens = NAMED_TOKENS if named_tokens is None else named_tokens
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                f"chat template is not valid jinja (line {error.lineno}: {error.message}); correct chat_template.jinja or "
                "remove it to use the built-in one"
            ) from error
        self.variables = frozenset(
            meta.find_undeclared_variables(environment.parse(source)) - _OWN - set(environment.globals) - set(self.named_tokens)
        )
        self.arguments: dict[str, Any] = {}

    def with_arguments(self, arguments: dict[str, Any]) -> "ChatTemplate":
        """The same template with values for further variables that it reads. RequestError for one that it does not."""
        for name in arguments:
            if name not in self.variables:
                rule = f"chat_template_kwargs.{name[:80]} is not read by the model's chat template; "
                raise RequestError(
                    rule + (f"it reads {', '.join(sorted(self.variables))}" if self.variables else "leave it out")
                )
        template = copy.copy(self)
        template.arguments = arguments
        return template

    def with_tools(self) -> "ChatTemplate":
        """A template that shows tools, calls and results: this one, or the built-in one if this one never reads `tools`."""
        return self if "tools" in self.variables else ChatTemplate(BUILT_IN_TEMPLATE, self.named_tokens)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[Any] | None,
        add_generation_prompt: bool,
        enable_thinking: bool,
        arguments: dict[str, Any] | None = None,
    ) -> str:
        """The prompt's text. arguments: in place of `self.arguments`, with users' text marked.

        RequestError if the template refuses the conversation or cannot render it.
        """
        try:
            return self._template.render(
                **self.named_tokens,
                **(self.arguments if arguments is None else arguments),
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=enable_thinking,
            )
        except jinja2.TemplateError as error:
            raise RequestError(f"messages were refused by the model's chat template: {error}; change the messages") from error
        except _BAD_RENDERING as error:  # say, a template that joins text with a field the message does not have
            raise RequestError(f"messages do not fit the model's chat template: {error}; change the messages") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    """Plain JSON: jinja's own filter escapes <, > and & for web pages."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
