"""Flags of vLLM that are not flags here, and what to do instead: the answer to whoever gives one.

Knows nothing about the flags that work (`flag_table`) and those of FastDeploy (`fastdeploy_flags`).
"""

from collections.abc import Mapping
from types import MappingProxyType

VLLM_INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "--model": "the model has no flag: ernie45 serve MODEL",
        "--enable-lora": "leave it out: --lora-modules alone loads adapters",
        "--max-loras": "leave it out: all adapters of --lora-modules are loaded",
        "--max-lora-rank": "leave it out: any rank is taken",
        "--enable-auto-tool-choice": "leave it out: tools may always be called",
        "--enable-reasoning": "leave it out: thoughts always come as reasoning_content",
        "--enforce-eager": "leave it out: no graphs are captured",
        "--max-seq-len-to-capture": "leave it out: no graphs are captured",
        "--pipeline-parallel-size": "leave it out: one process holds the model",
        "--kv-cache-dtype": "leave it out: the cache has the type of the model",
        "--cpu-offload-gb": "leave it out: weights stay on the device; --swap-space takes pages of the cache",
        "--generation-config": "leave it out: the model's generation_config.json is read",
        "--override-generation-config": "send the values in the requests",
        "--hf-overrides": "change config.json of the model folder",
        "--allowed-local-media-path": "use --allowed-media-folder",
        "--otlp-traces-endpoint": "use --trace-endpoint",
        "--disable-log-requests": "leave it out: no request's text is logged",
        "--disable-log-stats": "leave it out: numbers are at /metrics alone",
        "--disable-uvicorn-access-log": "use --quiet",
        "--uvicorn-log-level": "use --quiet",
        "--speculative-model": "use --speculative-config",
        "--num-speculative-tokens": "use --speculative-config",
        "--max-num-queued-requests": "use --max-concurrency",
        "--ssl-keyfile": "put a proxy with TLS before the server",
        "--ssl-certfile": "put a proxy with TLS before the server",
        "--root-path": "let the proxy take the prefix off",
    }
)
