"""Settings of training data from files: forms, answer forms, masks, packing, mixture, workers.

Knows nothing about torch, files or models.
"""

from dataclasses import dataclass

from ernie45.config.errors import ConfigError

LOSS_ON = ("answer", "turns", "all")
THINKING = ("auto", "on", "off")
TEMPLATES = ("model", "built-in")
WEIGHTINGS = ("token_balanced", "mean", "sample")
ON_BAD = ("skip", "stop")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How records become batches.

    format        form of all records; "auto": each by its keys.
    loss_on       "answer": the last one; "turns": every answer; "all": the whole text. Records that mark their turns themselves
                  keep their marks, but for "all", where a turn marked without loss has none.
    thinking      answer form of records that do not say: "auto": by whether the last answer has thoughts; "on", "off": always.
    template      "model": the model folder's own chat template; "built-in": the one that comes with the package.
    context       tokens of one sequence at most; a longer record is a bad one. 0: token_budget.
    token_budget  tokens of one pack, which is one shard of a step.
    patch_budget  patches of its pictures at most; 0: no bound but the tokens.
    window        records among which packs are filled; more fills better and mixes lengths less.
    weighting     what a label counts: "token_balanced": 1 / tokens a step has room for; "mean": 1 / labels of the step;
                  "sample": each sequence of a step the same, its labels in equal parts.
    weights       NAME=WEIGHT by source (a file's name up to its first dot or the number of its part); empty: every record once.
    on_bad        "skip": a bad record is counted, logged and left out; "stop": it ends the run.
    workers       processes that read, decode and encode; 0: this one does. They change nothing but speed.
    prefetch      packs made ahead.
    allow_remote  whether pictures may be fetched over http(s), within the limits of the processor.
    """

    format: str = "auto"
    loss_on: str = "answer"
    thinking: str = "auto"
    template: str = "model"
    context: int = 0
    token_budget: int = 4096
    patch_budget: int = 0
    window: int = 2048
    weighting: str = "token_balanced"
    weights: tuple[str, ...] = ()
    on_bad: str = "skip"
    workers: int = 0
    prefetch: int = 4
    allow_remote: bool = False

    def __post_init__(self) -> None:
        allowed = {
            "loss_on": LOSS_ON,
            "thinking": THINKING,
            "template": TEMPLATES,
            "weighting": WEIGHTINGS,
            "on_bad": ON_BAD,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"data.{name} ({getattr(self, name)!r}) must be one of {', '.join(values)}; choose one")
        least = {"context": 0, "token_budget": 2, "patch_budget": 0, "window": 1, "workers": 0, "prefetch": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"data.{name} ({getattr(self, name)}) must be at least {low}; raise it")
        if self.context > self.token_budget:
            raise ConfigError(
                f"data.context ({self.context}) must be at most data.token_budget ({self.token_budget}), which holds whole "
                "sequences; lower the first or raise the second"
            )
        self.source_weights()

    @property
    def max_tokens(self) -> int:
        """`context`, resolved."""
        return self.context or self.token_budget

    def source_weights(self) -> dict[str, float]:
        """`weights` by name. ConfigError for what is no NAME=WEIGHT."""
        return parse_weights(self.weights, "data.weights")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """How files become the records that pretraining reads in one global order.

    format           form of all documents; "auto": each by its keys.
    record_tokens    tokens of a record: texts are cut into such, whatever has pictures is put together up to it.
    context_records  neighbouring records of the order that are one context; changes nothing of the order.
    block_records    records of a source that stay together in the order: the longest context that reads long documents on.
    patch_budget     patches of one document at most; 0: no bound but the tokens.
    weights          NAME=WEIGHT by source (a file's name up to its first dot); empty: by how many records each has.
    weighting        what a label counts: "token_balanced" or "mean", as in `DataConfig`.
    on_bad, workers, prefetch, allow_remote  as in `DataConfig`.
    """

    format: str = "auto"
    record_tokens: int = 1024
    context_records: int = 1
    block_records: int = 16
    patch_budget: int = 0
    weights: tuple[str, ...] = ()
    weighting: str = "token_balanced"
    on_bad: str = "skip"
    workers: int = 0
    prefetch: int = 4
    allow_remote: bool = False

    def __post_init__(self) -> None:
        for name in ("context_records", "block_records"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} ({getattr(self, name)}) must be at least 1; raise it")
        if self.block_records % self.context_records:
            raise ConfigError(
                f"data.context_records ({self.context_records}) must divide data.block_records ({self.block_records}), so that "
                "no context spans two blocks; use a power of two for both"
            )
        if self.weighting not in ("token_balanced", "mean"):
            raise ConfigError(f"data.weighting ({self.weighting!r}) must be token_balanced or mean; choose one")
        self.source_weights()
        self.encoding  # noqa: B018  checks what the two have in common

    def source_weights(self) -> dict[str, float]:
        """`weights` by name."""
        return parse_weights(self.weights, "data.weights")

    @property
    def encoding(self) -> DataConfig:
        """How a single document becomes a sequence."""
        return DataConfig(
            format=self.format,
            loss_on="all",
            token_budget=self.record_tokens,
            patch_budget=self.patch_budget,
            on_bad=self.on_bad,
            workers=self.workers,
            prefetch=self.prefetch,
            allow_remote=self.allow_remote,
        )


def parse_weights(entries: tuple[str, ...], field: str) -> dict[str, float]:
    """NAME=WEIGHT for each entry. ConfigError for another form, a name twice, or weights that are not positive."""
    found: dict[str, float] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = 0.0
        if not (name and equals and 0 < weight < float("inf")) or name in found:
            raise ConfigError(f"{field} ({entry!r}) must be NAME=WEIGHT, above 0 and each name once, for example web=0.7")
        found[name] = weight
    return found
