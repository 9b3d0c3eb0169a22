"""`ernie45 serve`: the OpenAI-compatible server and the chat page.

Knows nothing about the protocol (`server`).
"""

import argparse
from dataclasses import replace
from pathlib import Path

from ernie45.commands.arguments import add_engine, engine_config, whole_number
from ernie45.config.server import ServerConfig

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
    parser.add_argument(
        "--host", default=DEFAULT_HOST, metavar="NAME", help="address to listen on (127.0.0.1: this machine only)"
    )
    parser.add_argument(
        "--port", type=whole_number(0, 65535), default=DEFAULT_PORT, metavar="N", help=f"port ({DEFAULT_PORT}); 0: a free one"
    )
    parser.add_argument("--served-model-name", metavar="NAME", help="what clients call it (the last part of MODEL)")
    parser.add_argument("--max-model-len", type=whole_number(2), metavar="N", help="tokens of prompt and answer (the model's)")
    parser.add_argument("--max-num-seqs", type=whole_number(1), default=32, metavar="N", help="sequences in one step (32)")
    parser.add_argument("--allow-private-media", action="store_true", help="let picture addresses point into private networks")
    parser.add_argument("--allowed-media-folder", type=Path, metavar="DIR", help="let file:// addresses name files below DIR")
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    config = ServerConfig(
        model=args.model,
        host=args.host,
        port=args.port,
        served_model_name=args.served_model_name,
        engine=replace(engine_config(args), max_model_len=args.max_model_len, max_num_seqs=args.max_num_seqs),
        allow_private_media=args.allow_private_media,
        allowed_media_folder=args.allowed_media_folder,
    )
    from ernie45.server.run import serve

    return serve(config)
