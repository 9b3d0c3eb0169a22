"""The engine's face: schedule, run, update, over and over.

Knows nothing about text, HTTP or threads; whoever owns an LLM calls it from one thread.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path

import torch
from llguidance import LLMatcher

from ernie45.checkpoint import load_model, resolve_model
from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError, RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.parameters import context_of_double
from ernie45.config.sampling import Grammar, SamplingParams
from ernie45.engine.adapters import Adapters
from ernie45.engine.capacity import context_length, num_pages, overlaps
from ernie45.engine.disk_pages import DiskPages
from ernie45.engine.history import History
from ernie45.engine.mtp import MTPProposer
from ernie45.engine.page_copier import PageCopier, fingerprint, num_slots
from ernie45.engine.pipeline import Pipeline
from ernie45.engine.request import Completion, Event, Request
from ernie45.engine.routing import RoutingRecord
from ernie45.engine.runner import Runner
from ernie45.engine.scheduler import Scheduler
from ernie45.engine.speculative import NgramProposer, Speculator
from ernie45.engine.stats import SchedulerStats
from ernie45.engine.tiers import PageTiers
from ernie45.model.cache import PagedKVCache
from ernie45.model.multimodal import ErnieModel
from ernie45.ops.decode import WIDE
from ernie45.processor.grammar import GrammarCompiler
from ernie45.processor.tokenizer import Tokenizer


class LLM:
    """A model that serves many requests at once.

    Two ways to use it, not both at a time: `stream` and `generate`, which step by themselves, or `submit`, `abort` and
    `step` for an owner with a loop of its own. Streams and `generate` may interleave.
    """

    def __init__(
        self,
        model: ErnieModel,
        config: EngineConfig | None = None,
        compile_grammar: Callable[[Grammar], LLMatcher] | None = None,
    ) -> None:
        """`model` is used as it is, on its device and in its dtype; those of `config` are for `load`.

        compile_grammar: a matcher for a grammar over the model's vocabulary (`processor.grammar.GrammarCompiler.matcher`).
        RequestError for grammars without it.
        """
        self.model = model
        self.config = replace(config or EngineConfig(), device=str(model.device))
        self.adapters = Adapters(model, self.config.lora_modules)
        pages = num_pages(self.config, model.config, model.dtype)
        cache = PagedKVCache(
            model.config,
            num_pages=pages,
            page_size=self.config.page_size,
            dtype=model.dtype,
            device=model.device,
            with_mtp=self.config.speculation.method == "mtp",
        )
        routing = _routing_record(model, self.config, pages)
        self._runner = Runner(model, cache, self.config.vision_cache_tokens, self.adapters, routing)
        self._disk = _disk(model, self.config, cache)
        slots = num_slots(self.config.host_cache_bytes, cache.num_bytes // pages)
        self._scheduler = Scheduler(
            self.config,
            pages,
            context_length(self.config, model.config),
            tiers=PageTiers(slots, self._disk),
            is_encoded=self._runner.features.__contains__,
            context_of_double=context_of_double(model.config),
        )
        self._pipeline = Pipeline(self._scheduler, self._runner, PageCopier(cache, slots, self._disk))
        self._looks_ahead = overlaps(self.config)
        self._speculator = _speculator(model, self.config, self._runner)
        self._compile_grammar = compile_grammar
        self._inboxes, self._ids = dict[str, deque[Event]](), count()

    @classmethod
    def load(cls, name_or_path: str | Path, config: EngineConfig | None = None) -> "LLM":
        """Load a model folder, or the shipped one by the name `tiny`. CheckpointError, ConfigError as in their modules.

        On a CPU a narrow model sets the whole process to one thread: more would wait for each other in every small operation
        (measured on two busy cores: three times the CPU time, twice the wall time).
        """
        config = config or EngineConfig()
        model = load_model(name_or_path, dtype=config.dtype, device=config.device)
        if model.device.type == "cpu" and model.config.hidden_size < WIDE:
            torch.set_num_threads(1)
        return cls(model, config, _lazy_grammars(resolve_model(name_or_path), model.config.vocab_size))

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together that one request may have."""
        return self._scheduler.max_model_len

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or self._pipeline.has_untold

    def stats(self) -> SchedulerStats:
        features, speculator = self._runner.features, self._speculator
        stats = replace(
            self._scheduler.stats(), num_encoded_units=features.num_encoded_units, num_encoder_hits=features.num_hits
        )
        if speculator is None:
            return stats
        return replace(
            stats,
            num_drafts=speculator.num_drafts,
            num_draft_tokens=speculator.num_draft_tokens,
            num_accepted_tokens=speculator.num_accepted_tokens,
        )

    def expert_tokens(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Expert pool -> MoE layer -> tokens that each expert has had since the start. Waits for the device: ask seldom."""
        return self._runner.expert_load.tokens()

    def close(self) -> None:
        """End the engine's threads; cached pages go to the disk tier, if there is one, for the next start."""
        try:
            self._pipeline.close()
            self._pipeline.archive()
        finally:
            if self._disk is not None:
                self._disk.close()

    def weights_changed(self) -> None:
        """The model's weights are others now: nothing that was computed with the old ones is used again.

        Unfinished requests begin anew. ConfigError with a disk tier, which is bound to the weights it began with.
        """
        if self._disk is not None:
            raise ConfigError(
                f"disk_cache_folder ({self.config.disk_cache_folder}) must not be given to an engine whose weights change; "
                "leave it out"
            )
        self._scheduler.reset()
        self._runner.features.clear()

    def check_integrity(self) -> None:
        self._scheduler.check_integrity()

    def add_adapter(self, name: str, folder: str | Path) -> None:
        """Load a LoRA adapter that PEFT has saved; requests may name it from now on. Errors as in `Adapters.add`."""
        self.adapters.add(name, folder)

    def prepare_grammar(self, grammar: Grammar) -> None:
        """Compile a grammar, up to 0.2 s of work, so that `submit` finds it done. From any thread. RequestError as there."""
        if self._compile_grammar is not None:
            self._compile_grammar(grammar)

    def submit(self, request: Request) -> None:
        """Queue a request; its events come out of `step`. RequestError, and nothing changes, if the model cannot take it."""
        model, inputs = self.model.config, request.inputs
        if inputs.media and not model.is_multimodal:
            raise RequestError(f"pictures ({len(inputs.media)}) must not be given to a text-only model; send text alone")
        if len(inputs) and not 0 <= inputs.token_ids.min() <= inputs.token_ids.max() < model.vocab_size:
            raise RequestError(
                f"token ids ({inputs.token_ids.min()} to {inputs.token_ids.max()}) must be from 0 to {model.vocab_size - 1}; "
                "use the model's own tokenizer"
            )
        if request.adapter is not None:
            request.adapter_hash = self.adapters.get(request.adapter).content_hash
        request.params.check_model(model.vocab_size, self.config.max_logprobs)
        request.history = self._history(request)
        self._scheduler.add(request)

    def _history(self, request: Request) -> History | None:
        params = request.params
        if not params.needs_tokens and not params.logit_bias:
            return None
        history = History(params, request.tokens, request.num_prompt_tokens, self.model.config.vocab_size)
        if params.grammar is not None:
            if self._compile_grammar is None:
                raise RequestError("grammar must not be given to a model without a tokenizer; load a whole model folder")
            history.follow_grammar(self._compile_grammar(params.grammar))
        return history

    def abort(self, request_id: str) -> bool:
        """Drop a request, waiting or running, and free its pages at once. No event follows. False if it is not known."""
        if self._speculator is not None:
            self._speculator.forget(request_id)
        self._pipeline.forget(request_id)
        return self._scheduler.abort(request_id)

    def step(self) -> list[Event]:
        """One step of the model for all requests: one event for each request that got a token. Empty without work.

        With overlap the events are those of the step before the one that this call starts. After an error nothing of the
        cache is used any more, and unfinished requests begin anew.
        """
        if self._looks_ahead:
            return self._pipeline.step_ahead()
        speculator = self._speculator
        if speculator is not None:
            speculator.draft(self._scheduler.running)
        chunks = self._scheduler.schedule()
        if not chunks:
            self._pipeline.await_disk()
            return []
        if speculator is not None:
            speculator.planned(chunks)
        events = self._scheduler.update(chunks, self._pipeline.run(chunks))
        if speculator is not None:
            speculator.observe(chunks)
        return events

    def stream(
        self, inputs: ModelInput, params: SamplingParams | None = None, adapter: str | None = None
    ) -> Generator[Event, None, None]:
        """Events of one request as they come; the last has a finish reason. Closing it aborts the request.

        Nothing happens before the first event is asked for; RequestError comes then.
        """
        request = self._enter(inputs, params or SamplingParams(), adapter)
        inbox = self._inboxes[request.request_id]
        try:
            while request.finish_reason is None or inbox:
                while not inbox:
                    self._pump()
                yield inbox.popleft()
        finally:
            self._leave(request)

    def generate(
        self,
        inputs: Sequence[ModelInput],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        adapter: str | None = None,
    ) -> list[Completion]:
        """Answer all inputs, batched as they come and go; answers in the order of the inputs. One params for all or one each.

        adapter: name of the LoRA adapter that answers; None: the model itself.
        RequestError if the model cannot take one of them, before any of them has run.
        """
        params = params or SamplingParams()
        each = [params] * len(inputs) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(inputs):
            raise RequestError(f"params ({len(each)}) must be one for all or one for each of {len(inputs)} inputs")
        requests: list[Request] = []
        try:
            for item, item_params in zip(inputs, each, strict=True):
                requests.append(self._enter(item, item_params, adapter))
            while any(request.finish_reason is None for request in requests):
                self._pump()
        finally:
            for request in requests:
                self._leave(request)
        return [request.completion() for request in requests]

    def _enter(self, inputs: ModelInput, params: SamplingParams, adapter: str | None) -> Request:
        request = Request(request_id=f"local-{next(self._ids)}", inputs=inputs, params=params, adapter=adapter)
        self.submit(request)
        self._inboxes[request.request_id] = deque()
        return request

    def _leave(self, request: Request) -> None:
        self.abort(request.request_id)
        self._inboxes.pop(request.request_id, None)

    def _pump(self) -> None:
        for event in self.step():
            assert event.request_id in self._inboxes, f"{event.request_id} was submitted by hand while a stream ran"
            self._inboxes[event.request_id].append(event)


def _speculator(model: ErnieModel, config: EngineConfig, runner: Runner) -> Speculator | None:
    """Who guesses ahead, as configured. ConfigError if the model has not what it takes."""
    speculation = config.speculation
    if speculation.method == "none":
        return None
    if speculation.method == "ngram":
        return Speculator(speculation, NgramProposer(speculation))
    if not model.mtp:
        raise ConfigError(
            f"speculation method ({speculation.method!r}) must be one that the model can do; it has no multi-token-prediction "
            "module (num_mtp_layers is 0), use 'ngram'"
        )
    proposer = MTPProposer(model, runner.cache_step, config.page_size)
    runner.on_hidden = proposer.keep
    return Speculator(speculation, proposer)


def _lazy_grammars(folder: Path, vocab_size: int) -> Callable[[Grammar], LLMatcher]:
    """Compiles grammars over a model folder's tokenizer, which is read when the first grammar comes."""

    @cache
    def compiler() -> GrammarCompiler:
        return GrammarCompiler(Tokenizer.from_dir(folder), vocab_size)

    return lambda grammar: compiler().matcher(grammar)


def _routing_record(model: ErnieModel, config: EngineConfig, num_pages: int) -> RoutingRecord | None:
    """None where it is not asked for, or the model has no experts."""
    pools = model.config.expert_pools
    num_layers = sum(map(model.config.is_moe_layer, range(model.config.num_layers)))
    if not (config.records_routing and num_layers and pools):
        return None
    return RoutingRecord(num_pages, config.page_size, num_layers, max(pool.num_active for pool in pools))


def _disk(model: ErnieModel, config: EngineConfig, cache: PagedKVCache) -> DiskPages | None:
    if config.disk_cache_folder is None:
        return None
    return DiskPages(config.disk_cache_folder, config.disk_cache_bytes, fingerprint(model, cache))
