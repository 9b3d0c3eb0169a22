"""`ernie45 demo`: a picture, a question, two answers (with and without thinking), then the chat page.

Knows nothing about how an answer is made (`conversation`) or served (`serve`).
"""

import argparse

from ernie45.commands.arguments import whole_number
from ernie45.commands.serve import DEFAULT_HOST, DEFAULT_PORT
from ernie45.config.server import ServerConfig

SUMMARY = "ask the tiny model about a picture, then chat in the browser"
EXAMPLES = """\
examples:
  ernie45 demo                 then open http://127.0.0.1:8180
  ernie45 demo --port 9000     the page on another port
  ernie45 demo --no-serve      only the answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=whole_number(1, 65535), default=DEFAULT_PORT, metavar="N", help=f"of the chat page ({DEFAULT_PORT})"
    )
    parser.add_argument("--no-serve", action="store_true", help="stop after the answers")


def run(args: argparse.Namespace) -> int:
    from ernie45.commands.showcase import show_sample

    show_sample()
    if args.no_serve:
        return 0
    from ernie45.server.run import bind, serve

    bind(DEFAULT_HOST, args.port).close()  # an error now, not after we have said where the page is
    print(f"Chat page: http://{DEFAULT_HOST}:{args.port}  (Ctrl-C ends it)", flush=True)
    return serve(ServerConfig(model="tiny", host=DEFAULT_HOST, port=args.port, quiet=True))
