"""From a checked plain completion request to a task.

Knows nothing about HTTP, threads or how the engine works; there are no thoughts and no templates here.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from ernie45.config.errors import RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.sampling import SamplingParams
from ernie45.server.job import Job, ServedModel, Task
from ernie45.server.protocol import CompletionRequest
from ernie45.server.sampling import sampling_params, seeds, stop_strings
from ernie45.server.structured import answer_form, grammar
from ernie45.server.translate import check_text_fits, choose_model, task_fields

_DEFAULT_MAX_TOKENS = 16  # OpenAI's


def translate_completion(request: CompletionRequest, model: ServedModel) -> Task:
    """ApiError or Ernie45Error for a bad one. Answers to one prompt stand together, in the order of the prompts."""
    n = request.n or 1
    if request.best_of is not None and request.best_of != n:
        raise RequestError(f"best_of ({request.best_of}) must be n ({n}): all answers are sent; leave it out")
    if request.max_tokens == 0 and not request.echo:
        raise RequestError("max_tokens (0) must be at least 1 without echo; raise it, or set echo to true")
    params = _params(request, model)
    job = Job(
        prompt=model.processor.encode_ids([]),
        params=params,
        stop=stop_strings(request.stop),
        include_stop=bool(request.include_stop_str_in_output),
        own_stop_ids=tuple(request.stop_token_ids or ()),
        skip_special_tokens=request.skip_special_tokens is not False,
    )
    jobs = [
        replace(job, prompt=prompt, prompt_index=index, params=one)
        for index, prompt in enumerate(_prompts(request, model))
        for one in seeds(params, n)
    ]
    name, adapter = choose_model(request.model, model)
    silent = request.max_tokens == 0
    task = task_fields(request)
    return replace(task, jobs=tuple(jobs), model=name, adapter=adapter, echo=bool(request.echo), silent=silent)


def _prompts(request: CompletionRequest, model: ServedModel) -> Iterator[ModelInput]:
    prompt = request.prompt
    single = isinstance(prompt, str) or isinstance(prompt[0], int)
    for index, item in enumerate([prompt] if single else prompt):
        field = "prompt" if single else f"prompt[{index}]"
        if isinstance(item, str):
            check_text_fits(field, item, model.max_model_len)
            item = model.processor.tokenizer.encode(item, allow_special=True)
            if not item:
                raise RequestError(f"{field} ('') must have at least one token; send a text, or the id of a first token")
        yield model.processor.encode_ids(cast("list[int]", item), field)


def _params(request: CompletionRequest, model: ServedModel) -> SamplingParams:
    processor = model.processor
    params = sampling_params(request, model.defaults, processor.tokenizer, processor.stop_token_ids)
    max_tokens = _DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    of_prompt = request.logprobs if request.echo else None
    if of_prompt is not None and max_tokens <= 1:
        # Harnesses that score a prompt ask for one token more and drop the last entry: it must be there, also for an end token.
        params = replace(params, stop_token_ids=(), min_tokens=0)
    return replace(
        params,
        max_tokens=max(max_tokens, 1),
        logprobs=request.logprobs,
        prompt_logprobs=of_prompt,
        grammar=grammar(answer_form(request), None, None),
    )
