"""`python -m ernie45.entrypoints.openai.api_server`: the server under FastDeploy's flags and defaults.

Knows nothing about serving; it turns flags into a `ServerConfig`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ernie45.checkpoint import read_config
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError, Ernie45Error
from ernie45.config.server import ServerConfig

REASONING_PARSERS = ("ernie-45-vl",)
EXIT_USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Serve. Exit code 0 after a stop, 1 if the engine failed, 2 for what the user can mend (one line on stderr)."""
    args = build_parser().parse_args(argv)
    try:
        longest = read_config(args.model).max_position_embeddings
        for line in notes(args, longest):
            sys.stderr.write(f"api_server: note: {line}\n")
        config = to_config(args, longest)
        from ernie45.server.run import serve  # loads torch: only once the flags are known to be good

        return serve(config)
    except Ernie45Error as error:
        sys.stderr.write(f"api_server: error: {' '.join(str(error).split())}\n")
        return EXIT_USER_ERROR


def build_parser() -> argparse.ArgumentParser:
    """FastDeploy's names and defaults; each help text says what the flag does here."""
    parser = argparse.ArgumentParser(
        prog="python -m ernie45.entrypoints.openai.api_server",
        description="OpenAI-compatible server for ERNIE 4.5, with FastDeploy's flags.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="a model folder, or tiny for the model that comes with the package")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=8000, help="port of the API (default: 8000)")
    parser.add_argument("--served-model-name", help="the name clients use (default: the last part of --model)")
    parser.add_argument("--max-model-len", type=int, default=2048, help="tokens of prompt and answer together (default: 2048)")
    parser.add_argument("--max-num-seqs", type=int, default=8, help="sequences in one step at most (default: 8)")
    parser.add_argument("--reasoning-parser", help=f"one of {', '.join(REASONING_PARSERS)}; always on for thinking models")
    parser.add_argument("--enable-mm", action="store_true", help="no effect: deduced from the model")
    parser.add_argument("--metrics-port", type=int, help="no effect yet: this server has no metrics")
    parser.add_argument("--engine-worker-queue-port", type=int, help="no effect: the engine runs in this process")
    parser.add_argument("--allow-private-media", action="store_true", help="let picture addresses point into private networks")
    parser.add_argument("--allowed-media-folder", type=Path, help="a folder whose files file:// addresses may name")
    return parser


def notes(args: argparse.Namespace, longest: int) -> list[str]:
    """One line for each flag that has no effect, or not the one it says. longest: tokens the model was made for."""
    lines = []
    if args.max_model_len > longest:
        lines.append(f"--max-model-len {args.max_model_len} is more than this model was made for: {longest} is used")
    if args.enable_mm:
        lines.append("--enable-mm has no effect: whether the model takes pictures is deduced from its config.json")
    if args.metrics_port is not None:
        lines.append(f"--metrics-port {args.metrics_port} has no effect yet: this server has no metrics")
    if args.engine_worker_queue_port is not None:
        port = args.engine_worker_queue_port
        lines.append(f"--engine-worker-queue-port {port} has no effect: the engine runs in this process")
    if args.reasoning_parser is not None:
        lines.append(f"--reasoning-parser {args.reasoning_parser} has no effect: thoughts are always told from answers")
    return lines


def to_config(args: argparse.Namespace, longest: int) -> ServerConfig:
    """ConfigError for a value outside its range."""
    if args.reasoning_parser not in (None, *REASONING_PARSERS):
        raise ConfigError(f"reasoning_parser ({args.reasoning_parser!r}) must be one of {', '.join(REASONING_PARSERS)}")
    return ServerConfig(
        model=args.model,
        host=args.host,
        port=args.port,
        served_model_name=args.served_model_name,
        engine=EngineConfig(max_model_len=min(args.max_model_len, longest), max_num_seqs=args.max_num_seqs),
        allow_private_media=args.allow_private_media,
        allowed_media_folder=args.allowed_media_folder,
    )


if __name__ == "__main__":
    sys.exit(main())
