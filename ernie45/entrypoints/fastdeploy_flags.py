"""Flags of FastDeploy that mean nothing here, one thing only, or something that is done in another way; each says so.

Knows nothing about the flags that work (`flag_table`).
"""

from ernie45.entrypoints.flags import Flag

_ELSEWHERE = "for those who come from FastDeploy"


def _only(name: str, values: str, rule: str) -> Flag:
    return Flag(name=name, group=_ELSEWHERE, only=tuple(values.split()), rule=rule)


def _note(name: str, note: str, switch: bool = False, both: bool = False) -> Flag:
    return Flag(name=name, group=_ELSEWHERE, note=note, parse=None if switch or both else str, both=both)


def _instead(name: str, instead: str, switch: bool = False) -> Flag:
    return Flag(name=name, group=_ELSEWHERE, instead=instead, parse=None if switch else str)


_PAGES = "pages are handed out one by one, as tokens come"
_ONE = "one process holds the model; start one server for each card"
_ROLES = "this server computes prompts and answers alike; leave it out"

FASTDEPLOY_FLAGS: tuple[Flag, ...] = (
    _only(
        "--reasoning-parser",
        "ernie-45-vl ernie-45-vl-thinking ernie-x1 ernie45",
        "thoughts are told from answers by <think> and </think>; other models' are not known",
    ),
    _note("--enable-mm", "whether the model takes pictures is deduced from its config.json", switch=True),
    _only("--workers", "1", "one asyncio process serves thousands of connections, and the engine has its own"),
    _note("--controller-port", "there is no controller; /load and /metrics tell the state"),
    _note("--max-waiting-time", "a request above --max-concurrency is answered with 429 at once"),
    _instead("--enable-mm-output", "no ERNIE 4.5 model makes pictures; leave it out", switch=True),
    _note("--timeout", "it belongs to gunicorn; --request-timeout bounds a request"),
    _instead("--revision", "fetch that revision into a folder and name the folder"),
    _instead("--tokenizer", "the tokenizer is that of the model folder; leave it out"),
    _instead("--tokenizer-base-url", "the tokenizer is that of the model folder; leave it out"),
    _only("--model-config-name", "config.json", "the model folder's config has this name"),
    _only("--task", "generate", "this server generates; it makes no embeddings or rewards"),
    _only("--runner", "auto generate", "this server generates"),
    _only("--convert", "auto none", "weights are read in all three layouts as they are"),
    _instead("--override-pooler-config", "this server makes no embeddings; leave it out"),
    _instead("--tool-parser-plugin", "known formats are chosen with --tool-call-parser"),
    _note("--use-warmup", "the engine is ready for any request once it is loaded"),
    _note("--load-choices", "the layout of the weights is found out"),
    _only("--load-strategy", "normal", "weights are read from the model folder at the start"),
    _instead("--dynamic-load-weight", "start the server with the new weights", switch=True),
    _instead("--lm_head-fp32", "use --dtype float32", switch=True),
    _instead("--logits-processors", "use bad_words, logit_bias, penalties or structured output in the request"),
    _instead("--quantization", "the weights' own type is used; --dtype bfloat16 halves float32"),
    _note("--enable-logprob", "log-probabilities are there for whoever asks, up to --max-logprobs", switch=True),
    _only("--logprobs-mode", "raw_logprobs", "log-probabilities are those of the model, before temperature and filters"),
    _only("--guided-decoding-backend", "auto guidance", "llguidance is what constrains answers"),
    _note("--guided-decoding-disable-any-whitespace", "answers in JSON have no white space that is not needed", switch=True),
    _instead("--enable-early-stop", "use repetition_penalty or max_tokens in the request", switch=True),
    _instead("--early-stop-config", "use repetition_penalty or max_tokens in the request"),
    _only("--tensor-parallel-size", "1", _ONE),
    _only("-tp", "1", _ONE),
    _only("--data-parallel-size", "1", _ONE),
    _only("--local-data-parallel-id", "0", _ONE),
    _instead("--enable-expert-parallel", _ONE, switch=True),
    _instead("--enable-eplb", _ONE, switch=True),
    _instead("--eplb-config", _ONE),
    _note("--disable-custom-all-reduce", "nothing is reduced in one process", switch=True),
    _instead("--ips", _ONE),
    _note("--kv-cache-ratio", _PAGES),
    _note("--prealloc-dec-block-slot-num-threshold", _PAGES),
    _note("--static-decode-blocks", _PAGES),
    _note("--cache-queue-port", "the engine holds its caches itself"),
    _instead("--kvcache-storage-backend", "use --disk-cache-folder"),
    _note("--enable-output-caching", "pages of answers are cached like those of prompts", switch=True),
    _note("--enable-chunked-prefill", "prompts are always computed in chunks", both=True),
    _note("--max-num-partial-prefills", "as many prompts as a step's budget holds are computed together"),
    _note("--disable-chunked-mm-input", "a picture is never cut", switch=True),
    _only("--splitwise-role", "mixed", "this server computes prompts and answers alike"),
    _instead("--cache-transfer-protocol", _ROLES),
    _instead("--pd-comm-port", _ROLES),
    _instead("--rdma-comm-ports", _ROLES),
    _instead("--innode-prefill-ports", _ROLES),
    _instead("--router", _ROLES),
    _only("--scheduler-name", "local", "requests are scheduled in this process"),
    _note("--graph-optimization-config", "steps run eagerly, or as compiled kernels where there are some"),
    _instead("--plas-attention-config", "attention is exact; leave it out"),
    _note("--trust-remote-code", "code of model folders is never run", switch=True),
)
