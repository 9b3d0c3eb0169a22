"""Every metric by name: what it counts, its labels, and FastDeploy's name for it where there is one.

Knows nothing about how a value comes about (`metrics`, `metrics_engine`). The docs and the dashboards are checked against it.
"""

from dataclasses import dataclass
from typing import Literal

PREFIX = "ernie45:"
FASTDEPLOY_PREFIX = "fastdeploy:"
Kind = Literal["counter", "gauge", "histogram", "info"]

# Seconds. Fine enough below for a token on a GPU, long enough above for a long answer on a laptop.
_STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
_REQUEST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_QUEUE_S = (0.001, 0.005, *_REQUEST_S)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072)
_RATE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Metric:
    """One family. name: without prefix, and without the `_total` and `_info` that Prometheus adds to counters and infos."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """The name as it is scraped; of a histogram, without `_bucket`, `_sum` and `_count`."""
        return PREFIX + self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


# Observed in the server. An answer is one request to the engine; a request with n = 3 has three.
SERVER_METRICS = (
    Metric("requests", "counter", "Answers that the engine was asked for."),
    Metric("request_success", "counter", "Answers that ended, by how: stop, length, abort, error.", ("finish_reason",)),
    Metric("request_errors", "counter", "HTTP requests for an answer that ended in an error, by status.", ("status",)),
    Metric("prompt_tokens", "counter", "Prompt tokens of all answers, cached ones included."),
    Metric("cached_prompt_tokens", "counter", "Prompt tokens that were not computed, as the prefix cache had them."),
    Metric("generation_tokens", "counter", "Tokens generated."),
    Metric("requests_with_cached_prompt", "counter", "Answers whose prompt was in the prefix cache, in part or whole."),
    Metric("request_preparation_time_seconds", "histogram", "From arrival until the engine has the prompt: parsing, media, "
           "tokens.", buckets=_QUEUE_S),
    Metric("request_queue_time_seconds", "histogram", "From the engine's queue to the first step.", buckets=_QUEUE_S),
    Metric("request_prefill_time_seconds", "histogram", "From the first step to the first token.", buckets=_REQUEST_S),
    Metric("request_decode_time_seconds", "histogram", "From the first token to the last.", buckets=_REQUEST_S),
    Metric("request_inference_time_seconds", "histogram", "From the first step to the last token.", buckets=_REQUEST_S),
    Metric("time_to_first_token_seconds", "histogram", "From arrival to the first token.", buckets=_REQUEST_S),
    Metric("inter_token_latency_seconds", "histogram", "Between two tokens; tokens that come together share the time.",
           buckets=_STEP_S),
    Metric("request_time_per_output_token_seconds", "histogram", "Mean time between the tokens of an answer.",
           buckets=_STEP_S),
    Metric("request_generation_rate", "histogram", "Tokens a second of an answer, after its first.", buckets=_RATE),
    Metric("e2e_request_latency_seconds", "histogram", "From arrival to the last token.", buckets=_REQUEST_S),
    Metric("request_prompt_tokens", "histogram", "Prompt tokens of an answer.", buckets=_TOKENS),
    Metric("request_generation_tokens", "histogram", "Tokens generated for an answer.", buckets=_TOKENS),
    Metric("request_params_max_tokens", "histogram", "max_tokens of an answer, where there is a limit.", buckets=_TOKENS),
    Metric("http_requests", "counter", "HTTP requests.", ("method", "route", "status")),
    Metric("http_request_duration_seconds", "histogram", "From an HTTP request to the end of its response.", ("route",),
           _QUEUE_S),
    Metric("num_requests_active", "gauge", "Requests for an answer that are in the server, media and queue included."),
    Metric("max_num_requests", "gauge", "Requests for an answer that the server takes before it says 429."),
    Metric("media_cache_num_items", "gauge", "Processed pictures that are kept."),
    Metric("media_cache_bytes", "gauge", "Bytes of the processed pictures that are kept."),
    Metric("media_cache_hits", "counter", "Pictures that were sent again and not decoded again."),
    Metric("media_cache_misses", "counter", "Pictures that were looked up and not kept."),
)  # fmt: skip

# Told by the engine. Counters go on where they were when the engine is started again.
ENGINE_METRICS = (
    Metric("engine_up", "gauge", "1 while the engine runs, else 0."),
    Metric("engine_restarts", "counter", "Times the engine was started again after it had ended."),
    Metric("num_requests_running", "gauge", "Sequences that the engine is computing."),
    Metric("num_requests_waiting", "gauge", "Sequences that wait for their turn, preempted ones included."),
    Metric("max_num_seqs", "gauge", "Sequences in one step at most."),
    Metric("max_model_len", "gauge", "Tokens of prompt and answer together that one request may have."),
    Metric("cache_config", "info", "The KV cache: page_size, num_pages.", ("page_size", "num_pages")),
    Metric("kv_cache_usage_perc", "gauge", "Share of KV pages that running sequences hold, 0 to 1."),
    Metric("kv_cache_num_pages", "gauge", "KV pages."),
    Metric("kv_cache_num_free_pages", "gauge", "KV pages that nobody holds, those of the prefix cache included."),
    Metric("kv_cache_num_cached_pages", "gauge", "Free KV pages whose content can still be reused."),
    Metric("engine_steps", "counter", "Steps of the model."),
    Metric("engine_step_seconds", "counter", "Seconds spent in steps."),
    Metric("num_preemptions", "counter", "Sequences that had to give their pages back and start again."),
    Metric("prefix_cache_queries", "counter", "Prompt tokens looked up in the prefix cache."),
    Metric("prefix_cache_hits", "counter", "Prompt tokens found, by tier: device, host, disk.", ("tier",)),
    Metric("encoder_cache_queries", "counter", "Images and two-frame units of videos that a step needed."),
    Metric("encoder_cache_hits", "counter", "Those of them whose features were there already."),
    Metric("spec_decode_num_draft_tokens", "counter", "Tokens proposed by speculation."),
    Metric("spec_decode_num_accepted_tokens", "counter", "Proposed tokens that the model agreed with."),
    Metric("expert_tokens", "counter", "Tokens sent to an expert, all layers together.", ("pool", "expert")),
    Metric("expert_load_imbalance", "gauge", "Busiest expert over the mean of its layer since the engine's start; 1 is even.",
           ("pool", "layer")),
)  # fmt: skip

METRICS = {metric.name: metric for metric in (*SERVER_METRICS, *ENGINE_METRICS)}

# FastDeploy's family -> ours, for those that are the same value under another name.
FASTDEPLOY_NAMES = {
    "requests_number": "requests",
    "request_preempted": "num_preemptions",
    "num_requests_running": "num_requests_running",
    "num_requests_waiting": "num_requests_waiting",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "time_per_output_token_seconds": "inter_token_latency_seconds",
    "e2e_request_latency_seconds": "e2e_request_latency_seconds",
    "request_inference_time_seconds": "request_inference_time_seconds",
    "request_queue_time_seconds": "request_queue_time_seconds",
    "request_prefill_time_seconds": "request_prefill_time_seconds",
    "request_decode_time_seconds": "request_decode_time_seconds",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "request_prompt_tokens": "request_prompt_tokens",
    "request_token_ratio": "request_generation_rate",
    "request_generation_tokens": "request_generation_tokens",
    "request_params_max_tokens": "request_params_max_tokens",
    "batch_size": "num_requests_running",
    "max_batch_size": "max_num_seqs",
    "cache_config": "cache_config",
    "available_gpu_block_num": "kv_cache_num_free_pages",
    "max_gpu_block_num": "kv_cache_num_pages",
    "gpu_cache_usage_perc": "kv_cache_usage_perc",
}

# FastDeploy's family -> how it is had from ours (`metrics_alias` computes it).
FASTDEPLOY_DERIVED = {
    "request_success": "request_success of finish_reason stop and length",
    "available_batch_size": "max_num_seqs - num_requests_running",
    "free_gpu_block_num": "kv_cache_num_free_pages - kv_cache_num_cached_pages",
    "available_gpu_resource": "kv_cache_num_free_pages / kv_cache_num_pages",
    "hit_req_rate": "requests_with_cached_prompt / requests",
    "hit_token_rate": "prefix_cache_hits of all tiers / prefix_cache_queries",
    "gpu_hit_token_rate": "prefix_cache_hits of tier device / prefix_cache_queries",
    "cpu_hit_token_rate": "prefix_cache_hits of tier host / prefix_cache_queries",
    "prefix_cache_token_num": "prefix_cache_hits of all tiers",
    "prefix_gpu_cache_token_num": "prefix_cache_hits of tier device",
    "prefix_cpu_cache_token_num": "prefix_cache_hits of tier host",
    "prefix_storage_cache_token_num": "prefix_cache_hits of tier disk",
}

# FastDeploy's family -> why it is not exported.
FASTDEPLOY_LEFT_OUT = {
    "num_requests_enqueued": "there is one queue here: num_requests_waiting",
    "num_requests_preempted": "a preempted sequence waits like any other: num_requests_waiting",
    "send_cache_failed_num": "pages are not sent between instances",
    "max_cpu_block_num": "the host tier is bounded in bytes, not in pages",
}
