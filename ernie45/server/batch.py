"""Runs a file of requests through the service, many at once, without HTTP.

Knows nothing about what the requests say, and nothing about terminals.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ernie45.config.errors import Ernie45Error, RequestError
from ernie45.server.batch_file import BatchLine, BatchOutput, read_lines
from ernie45.server.endpoint import CHAT, COMPLETIONS, Endpoint
from ernie45.server.errors import ApiError
from ernie45.server.responses.store import ResponseStore
from ernie45.server.responses.translate import responses_endpoint
from ernie45.server.service import Service

# Lines cannot refer to each other: no response is stored.
ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": responses_endpoint(ResponseStore(max_bytes=0)),
}
# In a usage, for the counts.
_TOKENS = {
    "num_prompt_tokens": ("prompt_tokens", "input_tokens"),
    "num_completion_tokens": ("completion_tokens", "output_tokens"),
}
# Of the engine's restarts and of a queue that is full: these pass.
_PASSING = (429, 503)
_TRIES = 6
_FIRST_WAIT_S = 0.5


@dataclass(kw_only=True)
class BatchCounts:
    """Lines of the input: done before this run, answered in it, and with an error among all that are done."""

    num_lines: int = 0
    num_before: int = 0
    num_answered: int = 0
    num_errors: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0


Progress = Callable[[BatchCounts], None]


async def run_batch(
    service: Service, source: Path, destination: Path, concurrency: int, progress: Progress = lambda _: None
) -> BatchCounts:
    """Answer every line of `source` that has no answer in `destination` yet.

    An error of a line is its answer and stops nothing. Cancelled or killed, the run loses what is under way and nothing
    else; run again, it goes on. progress: called after the start and after each answer. RequestError, StorageError for files
    that cannot be used; Ernie45Error if the model cannot be loaded.
    """
    try:
        if destination.exists() and source.exists() and destination.samefile(source):
            raise RequestError(f"output ({destination}) is the input; choose another file")
        output = BatchOutput(destination)
        try:
            return await _run(service, source, output, concurrency, progress)
        finally:
            output.close()
    finally:
        await service.close()


async def _run(service: Service, source: Path, output: BatchOutput, concurrency: int, progress: Progress) -> BatchCounts:
    num_lines = num_before = 0
    for line in read_lines(source, service.config.max_body_bytes):
        num_lines += 1
        num_before += output.is_done(line)
    if num_before == num_lines:  # then no model is needed
        return BatchCounts(num_lines=num_lines, num_before=num_before, num_errors=output.num_errors)
    service.engine.start()
    await service.engine.wait_loaded()
    if service.engine.death is not None:
        raise Ernie45Error(service.engine.death.message)
    return await _Run(service, output, num_lines, progress).run(source, concurrency)


class _Run:
    def __init__(self, service: Service, output: BatchOutput, num_lines: int, progress: Progress) -> None:
        self._service = service
        self._output = output
        self._progress = progress
        self.counts = BatchCounts(num_lines=num_lines, num_errors=output.num_errors)

    async def run(self, source: Path, concurrency: int) -> BatchCounts:
        self._progress(self.counts)
        lines = iter(read_lines(source, self._service.config.max_body_bytes))
        workers = [asyncio.create_task(self._work(lines)) for _ in range(concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return self.counts

    async def _work(self, lines: Iterator[BatchLine]) -> None:
        """Take lines until there are no more. A line is read only when someone has time for it."""
        for line in lines:
            if self._output.is_done(line):
                self.counts.num_before += 1
                self._progress(self.counts)
                await asyncio.sleep(0)
                continue
            await self._answer(line)
            self.counts.num_answered += 1
            self.counts.num_errors = self._output.num_errors
            self._progress(self.counts)

    async def _answer(self, line: BatchLine) -> None:
        endpoint = ENDPOINTS.get(line.url)
        if line.error is None and endpoint is None:
            known = " or ".join(ENDPOINTS)
            self._output.write_error(line, f"url ({line.url[:80]!r}) of line {line.number} must be {known}; change it")
        elif line.error is not None or endpoint is None:
            self._output.write_error(line, str(line.error))
        else:
            status, body = await self._ask(endpoint, line.body)
            usage = body.get("usage") or {}
            for name, keys in _TOKENS.items():
                setattr(self.counts, name, getattr(self.counts, name) + sum(usage.get(key, 0) for key in keys))
            self._output.write(line, status, body)

    async def _ask(self, endpoint: Endpoint, body: bytes) -> tuple[int, dict]:
        """Status and body, after a few tries where the reason passes."""
        for attempt in range(_TRIES):
            try:
                answer = await self._service.answer(endpoint, body)
                assert isinstance(answer, dict), json.loads(body).get("stream")
                return 200, answer
            except ApiError as error:
                if error.status not in _PASSING or attempt == _TRIES - 1 or self._service.engine.state == "dead":
                    return self._refused(error)
            except Exception as error:  # noqa: BLE001  a defect costs its own line
                return self._refused(self._service.to_api_error(error))
            await asyncio.sleep(_FIRST_WAIT_S * 2**attempt)
        raise AssertionError(_TRIES)

    def _refused(self, error: ApiError) -> tuple[int, dict]:
        if self._service.engine.state == "dead":  # nothing of the rest can be answered: end, so that it can go on later
            raise Ernie45Error(f"the engine has ended and was not started again: {error.message}")
        return error.status, error.body
