"""`ernie45 generate`: continue texts or answer questions, for scripts.

Knows nothing about how tokens are made (`engine`) or what a prompt looks like (`processor`).
"""

import argparse
import json
import sys

from ernie45.commands.arguments import add_engine, add_media, add_model, add_sampling, engine_config
from ernie45.config.errors import RequestError

SUMMARY = "continue texts or answer questions, for scripts"
EXAMPLES = """\
examples:
  ernie45 generate "User: What is 47+12?"        continue a raw text
  ernie45 generate --chat "What is 47+12?"       through the chat template
  ernie45 generate "What is 1+1" "2+2" --json    a JSON line for each prompt
  ernie45 generate --chat --image strip.png "Read the digits."
  cat prompts.txt | ernie45 generate --json      one prompt a line

Several prompts run as one batch. Exit code 2 means that nothing was generated.
"""
_SAID = ("text", "reasoning", "finish_reason", "num_prompt_tokens", "num_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="texts; left out: one a line from stdin")
    add_model(parser)
    parser.add_argument("--chat", action="store_true", help="treat each prompt as a user's question")
    add_media(parser)
    add_engine(parser)
    add_sampling(parser, max_tokens=128)
    parser.add_argument("--json", action="store_true", help="print a JSON object a line, with token counts")


def run(args: argparse.Namespace) -> None:
    if (args.image or args.video) and not args.chat:
        raise RequestError("--image and --video need --chat: a raw text has no place for a picture; add --chat")
    prompts = args.prompts or [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not prompts:
        raise RequestError("prompt (nothing given) must be at least one text; give it as an argument or on stdin")

    from ernie45.commands.conversation import Conversation, Settings

    conversation = Conversation.load(args.model, Settings.from_arguments(args), engine_config(args))
    for result in conversation.complete(prompts, chat=args.chat, images=args.image, videos=args.video):
        said = {name: getattr(result, name) for name in _SAID}
        print(json.dumps(said, ensure_ascii=False) if args.json else result.text)
