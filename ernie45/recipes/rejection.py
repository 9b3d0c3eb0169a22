"""Rejection sampling: several answers to each prompt by our own engine; those that a reward accepts become training data.

Knows nothing about training. The file grows prompt by prompt and goes on after a kill: beside it stands how far it is whole.
Source: the second step of ERNIE 4.5's vision-language tuning.
"""

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ernie45.config.engine import EngineConfig
from ernie45.config.errors import ConfigError, DataError, StorageError
from ernie45.config.rejection import RejectionConfig
from ernie45.config.rewards import RewardsConfig
from ernie45.config.sampling import SamplingParams
from ernie45.data.answers import Graded
from ernie45.data.dataset import Dataset
from ernie45.data.records import Prompt
from ernie45.offline import LLM, TextCompletion
from ernie45.train.rewards.system import RewardSystem
from ernie45.train.storage import write_atomically


@dataclass
class Counts:
    """prompts: asked so far; solved: with at least one kept answer; kept: answers in the file. skipped: bad records."""

    prompts: int = 0
    solved: int = 0
    kept: int = 0
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """model: a folder, or tiny. prompts: files. out: the file to write. progress: told (prompts done, in all, counts)."""

    model: str
    prompts: tuple[Path, ...]
    out: Path
    config: RejectionConfig
    rewards: RewardsConfig
    progress: Callable[[int, int, Counts], None] = lambda done, total, counts: None


def sample(job: Job) -> Counts:
    """Write `out`, going on where an earlier call was stopped. Pure in model, prompts and config, whenever it was stopped.

    ConfigError if `out` is of another job; DataError for a file without prompts. Bad records are left out and counted.
    """
    dataset = Dataset(job.prompts, (Prompt,))
    state = _State.open(job, dataset)
    if state.done == len(dataset):
        return state.counts
    with RewardSystem(job.rewards) as rewards:
        llm = LLM(job.model, EngineConfig(max_num_seqs=64), on_error="return")
        try:
            for start in range(state.done, len(dataset), job.config.batch):
                numbers = range(start, min(start + job.config.batch, len(dataset)))
                _do_batch(job, dataset, numbers, state, (llm, rewards))
                job.progress(state.done, len(dataset), state.counts)
        finally:
            llm.close()
    return state.counts


def _do_batch(job: Job, dataset: Dataset, numbers: range, state: "_State", tools: tuple[LLM, RewardSystem]) -> None:
    """Answers to these prompts, judged and written."""
    llm, rewards = tools
    prompts = list(_readable(dataset, numbers, state.counts, rewards))
    size = job.config.samples
    answers = _answers(llm, job.config, prompts)
    graded = [_graded(job.config, prompts[place // size][1], answer) for place, answer in enumerate(answers)]
    values = rewards.score(graded)
    lines = []
    for place, (number, prompt) in enumerate(prompts):
        own = range(place * size, (place + 1) * size)
        right = [i for i in own if values.mask[i] and values.values[i] >= job.config.threshold and graded[i].finished]
        kept = _different([answers[i] for i in right])[: job.config.keep]
        scores = {id(answers[i]): values.values[i] for i in right}
        lines += [_line(job, number, prompt, answer, scores[id(answer)]) for answer in kept]
        state.counts.solved += bool(kept)
    state.counts.prompts += len(prompts)
    state.counts.kept += len(lines)
    state.add(lines, numbers.stop)


def _readable(dataset: Dataset, numbers: range, counts: Counts, rewards: RewardSystem) -> Iterator[tuple[int, Prompt]]:
    for number in numbers:
        try:
            prompt = dataset[number]
        except DataError:
            counts.skipped += 1
            continue
        assert isinstance(prompt, Prompt), type(prompt)
        rewards.check_domain(prompt.domain)
        yield number, prompt


def _answers(llm: LLM, config: RejectionConfig, prompts: Sequence[tuple[int, Prompt]]) -> list[TextCompletion]:
    """`samples` answers to each; each has a seed of its own, so that no answer depends on where a call was stopped."""
    thinking = config.thinking == "on"
    conversations = [prompt.messages for _, prompt in prompts for _ in range(config.samples)]
    params = [
        SamplingParams(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=_seed(config.seed, number, draw),
        )
        for number, _ in prompts
        for draw in range(config.samples)
    ]
    return llm.chat(conversations, params, enable_thinking=thinking) if conversations else []


def _seed(*numbers: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest(), "big")


def _graded(config: RejectionConfig, prompt: Prompt, answer: TextCompletion) -> Graded:
    return Graded(
        answer=answer.text,
        thoughts=answer.reasoning,
        messages=prompt.messages,
        reference=prompt.answer,
        domain=prompt.domain,
        extra=prompt.extra,
        thinking=config.thinking == "on",
        num_thought_ends=int(bool(answer.reasoning)),
        num_tokens=answer.num_tokens,
        finished=answer.finish_reason == "stop",
    )


def _different(answers: Sequence[TextCompletion]) -> list[TextCompletion]:
    """The first of each text, thought and answer, whatever its white space."""
    found: dict[str, TextCompletion] = {}
    for answer in answers:
        found.setdefault(" ".join(f"{answer.reasoning} | {answer.text}".split()), answer)
    return list(found.values())


def _line(job: Job, number: int, prompt: Prompt, answer: TextCompletion, score: float) -> dict[str, Any]:
    """A conversation as `train sft --data` reads it."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text.strip()}
    thinking = job.config.thinking == "on"
    if thinking:
        message["reasoning_content"] = answer.reasoning.strip()
    messages = [*(_plain(message, job.out) for message in prompt.messages), message]
    tools = {"tools": list(prompt.tools)} if prompt.tools else {}
    return {"messages": messages, **tools, "thinking": thinking, "sampled": {"prompt": number, "score": score}}


def _plain(message: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """A message as JSON: pictures by their path from the new file, or inside it where they have none."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    return {**message, "content": [_plain_part(part, out) for part in content]}


def _plain_part(part: Mapping[str, Any], out: Path) -> dict[str, Any]:
    kind = str(part.get("type"))
    value = part.get(kind)
    if isinstance(value, Path):
        return {**part, kind: os.path.relpath(value, out.parent)}
    if isinstance(value, bytes):
        return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:;base64,{base64.b64encode(value).decode()}"}}
    return dict(part)


class _State:
    """How much of `out` is whole: prompts, bytes, counts; in a file beside it, written after each batch."""

    def __init__(self, out: Path, key: str, done: int, num_bytes: int, counts: Counts) -> None:
        self.done, self.counts = done, counts
        self._out, self._key, self._num_bytes = out, key, num_bytes

    @classmethod
    def open(cls, job: Job, dataset: Dataset) -> "_State":
        """The state that an earlier call has left, with what it wrote after that cut off; or a new one."""
        facts = [job.model, dataset.fingerprint, asdict(job.config), asdict(job.rewards)]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        file = _beside(job.out)
        if not file.exists():
            if job.out.exists():
                raise ConfigError(f"--out ({job.out}) exists and is not of this job; choose another file or remove it")
            state = cls(job.out, key, 0, 0, Counts())
            state.add([], 0)
            return state
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["key"] != key or not job.out.exists() or job.out.stat().st_size < found["bytes"]:
            raise ConfigError(
                f"--out ({job.out}) was begun with another model, other prompts or other settings; use the same, choose "
                f"another file, or remove it and {file.name}"
            )
        os.truncate(job.out, found["bytes"])
        return cls(job.out, key, found["done"], found["bytes"], Counts(**found["counts"]))

    def add(self, lines: list[dict[str, Any]], done: int) -> None:
        """Append a batch and note that it is whole. StorageError if the disk is full; the next call goes on before it."""
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        try:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            with self._out.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{self._out} cannot be written: {error.strerror}; free space, then run again") from error
        self.done, self._num_bytes = done, self._num_bytes + len(data)
        note = {"key": self._key, "done": done, "bytes": self._num_bytes, "counts": asdict(self.counts)}
        write_atomically(_beside(self._out), (json.dumps(note) + "\n").encode())


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.progress")
