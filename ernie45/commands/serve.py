"""`ernie45 serve`: the OpenAI-compatible server and the chat page.

Knows nothing about the protocol (`server`).
"""

import argparse
from pathlib import Path

from ernie45.commands.arguments import whole_number

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8180
SUMMARY = "serve a model: OpenAI's API and a chat page"
EXAMPLES = """\
examples:
  ernie45 serve tiny                        http://127.0.0.1:8180
  ernie45 serve DIR --host 0.0.0.0          reachable from other machines
  ernie45 serve tiny --media-folder pics    file:// pictures, from there only

  curl http://127.0.0.1:8180/v1/chat/completions \\
    -H 'Content-Type: application/json' -d '{
    "messages": [{"role": "user", "content": "What is 12 + 30?"}],
    "metadata": {"enable_thinking": true}}'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder, or tiny")
    parser.add_argument("--host", default=DEFAULT_HOST, help=f"address to listen on ({DEFAULT_HOST}: this machine only)")
    parser.add_argument(
        "--port", type=whole_number(1, 65535), default=DEFAULT_PORT, metavar="N", help=f"port to listen on ({DEFAULT_PORT})"
    )
    parser.add_argument("--media-folder", type=Path, metavar="DIR", help="allow file:// pictures below DIR (none are allowed)")


def run(args: argparse.Namespace) -> None:
    pass
