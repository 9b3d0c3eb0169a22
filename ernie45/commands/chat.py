"""`ernie45 chat`: one answer, or a conversation in the terminal.

Knows nothing about how an answer is made (`conversation`) or shown (`terminal`).
"""

import argparse
import sys

from ernie45.commands.arguments import add_engine, add_media, add_model, add_sampling, engine_config

SUMMARY = "talk to a model about text, pictures and videos"
EXAMPLES = """\
examples:
  ernie45 chat                                    a conversation; try /help
  ernie45 chat "What is 47+12?" --thinking        one answer
  ernie45 chat --image F.png "Read the digits."   one answer about a picture
  echo "What is 7 + 5?" | ernie45 chat            the question from a pipe
  ernie45 chat --model DIR --max-tokens 1000      another model

The answer goes to stdout. The thought stands dimmed above it on a terminal,
and goes to stderr otherwise.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the question; left out: a conversation, or stdin if piped")
    add_model(parser)
    add_media(parser)
    add_engine(parser)
    add_sampling(parser, max_tokens=512)


def run(args: argparse.Namespace) -> None:
    from ernie45.commands.conversation import Conversation, Settings
    from ernie45.commands.dialogue import Dialogue, answer_once

    settings = Settings.from_arguments(args)
    piped = args.prompt is None and not sys.stdin.isatty()
    prompt = sys.stdin.read().strip() if piped else args.prompt
    conversation = Conversation.load(args.model, settings, engine_config(args))
    if prompt is not None:
        answer_once(conversation, prompt, images=args.image, videos=args.video)
    else:
        Dialogue(conversation, images=args.image, videos=args.video).run()
