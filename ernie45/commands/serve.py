"""`ernie45 serve`: the OpenAI-compatible server and the chat page.

Knows nothing about the protocol (`server`).
"""

import argparse
import sys

from ernie45.entrypoints.flag_table import ALL_FLAGS
from ernie45.entrypoints.flags import add_flags, notes, to_config

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8180
SUMMARY = "serve a model: OpenAI's API and a chat page"
EXAMPLES = """\
examples:
  ernie45 serve tiny                        http://127.0.0.1:8180
  ernie45 serve DIR --host 0.0.0.0          reachable from other machines
  ernie45 serve tiny --allowed-media-folder pics    file:// pictures from there

  curl http://127.0.0.1:8180/v1/chat/completions \\
    -H 'Content-Type: application/json' -d '{
    "messages": [{"role": "user", "content": "What is 47+12?"}],
    "metadata": {"enable_thinking": true}}'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder, or tiny")
    parser.usage = "ernie45 serve MODEL [options]"
    add_flags(parser, ALL_FLAGS)


def run(args: argparse.Namespace) -> int:
    config = to_config(args, ALL_FLAGS)
    for line in notes(args, ALL_FLAGS):
        print(f"ernie45: note: {line}", file=sys.stderr)
    from ernie45.server.run import serve

    return serve(config)
