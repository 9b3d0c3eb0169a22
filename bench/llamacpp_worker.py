"""llama.cpp's side of `bench.llamacpp`: answers one JSON command a line on its standard input with one line of JSON.

Knows nothing about ernie45; it needs llama-cpp-python only and may run in another environment.
"""

import ctypes
import json
import sys
import time

import llama_cpp  # pyright: ignore[reportMissingImports]


class Worker:
    """One GGUF model in one context."""

    def __init__(self, path: str, context: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        model_parameters = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_parameters)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = context, context, 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.num_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def run(self, token_ids: list[int], num_generated: int) -> dict[str, object]:
        """Prefill, then greedy decoding: CPU and wall seconds of both, the tokens, and the logits after the prompt."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)
        clocks = [_clocks()]
        first = self._decode(token_ids)
        clocks.append(_clocks())
        tokens, logits = [_argmax(first)], first
        for _ in range(num_generated - 1):
            logits = self._decode(tokens[-1:])
            tokens.append(_argmax(logits))
        clocks.append(_clocks())
        names = ("prefill", "decode")
        spans = {name: [end - start for start, end in zip(*clocks[i : i + 2], strict=True)] for i, name in enumerate(names)}
        return {**spans, "tokens": tokens, "logits": first}

    def _decode(self, token_ids: list[int]) -> list[float]:
        array = (llama_cpp.llama_token * len(token_ids))(*token_ids)
        code = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(token_ids)))
        assert code == 0, code
        return llama_cpp.llama_get_logits_ith(self.context, -1)[: self.num_vocab]


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _argmax(logits: list[float]) -> int:
    return max(range(len(logits)), key=logits.__getitem__)


def main() -> None:
    path, context, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    worker = Worker(path, context, threads)
    print(json.dumps({"version": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
