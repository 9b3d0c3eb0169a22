"""`python -m ernie45.entrypoints.openai.api_server`: the server under FastDeploy's flags and defaults.

Knows nothing about serving; it turns flags (`flag_table`) into a `ServerConfig`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from ernie45.checkpoint import read_config
from ernie45.config.errors import Ernie45Error
from ernie45.config.server import ServerConfig
from ernie45.entrypoints.flag_table import ALL_FLAGS
from ernie45.entrypoints.flags import add_flags, notes, to_config

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Serve. Exit code 0 after a stop, 1 if the engine failed, 2 for what the user can mend (one line on stderr), 130 after a
    second Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        longest = read_config(args.model).max_position_embeddings
        config, lines = fit_context(to_config(args, ALL_FLAGS, fastdeploy=True), longest)
        for line in [*lines, *notes(args, ALL_FLAGS)]:
            sys.stderr.write(f"api_server: note: {line}\n")
        from ernie45.server.run import serve  # brings the web framework: only once the flags are known to be good

        return serve(config)
    except Ernie45Error as error:
        sys.stderr.write(f"api_server: error: {' '.join(str(error).split())}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """FastDeploy's names and defaults; each help text says what the flag does here."""
    parser = argparse.ArgumentParser(
        prog="python -m ernie45.entrypoints.openai.api_server",
        usage="%(prog)s --model DIR [options]",
        description="OpenAI-compatible server for ERNIE 4.5, with FastDeploy's flags and defaults.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="a model folder, or tiny for the model that comes with the package")
    add_flags(parser, ALL_FLAGS, fastdeploy=True)
    return parser


def fit_context(config: ServerConfig, longest: int) -> tuple[ServerConfig, list[str]]:
    """The context cut to what the model was made for, as commands are passed on between models; and what to say about it."""
    asked = config.engine.max_model_len
    if asked is None or asked <= longest:
        return config, []
    line = f"--max-model-len {asked} is more than this model was made for: {longest} is used"
    return replace(config, engine=replace(config.engine, max_model_len=longest)), [line]


if __name__ == "__main__":
    sys.exit(main())
