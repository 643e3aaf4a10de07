"""The flags of tensorflow_model_server (model_servers/main.cc and server.h), in the form that it reads: --name=value.

The official server prints "unknown argument" and goes on; this one ends, so that a test sees a misspelt flag.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


class FlagError(Exception):
    """An argument that is no flag, or whose value does not fit."""


@dataclass
class Flags:
    """Flags with an effect here, and their defaults."""

    port: int = 8500
    rest_api_port: int = 0
    rest_api_timeout_in_ms: int = 30000
    enable_batching: bool = False
    batching_parameters_file: str = ""
    allow_version_labels_for_unavailable_models: bool = False
    model_config_file: str = ""
    model_config_file_poll_wait_seconds: int = 0
    model_name: str = "default"
    model_base_path: str = ""
    monitoring_config_file: str = ""
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000
    file_system_poll_wait_seconds: int = 1
    saved_model_tags: str = "serve"
    tensorflow_session_parallelism: int = 0
    tensorflow_intra_op_parallelism: int = 0
    tensorflow_inter_op_parallelism: int = 0
    version: bool = False


# Only a matter of speed or memory: accepted, without an effect.
IGNORED = frozenset(
    {
        "rest_api_num_threads",
        "num_load_threads",
        "num_unload_threads",
        "flush_filesystem_caches",
        "grpc_max_threads",
        "remove_unused_fields_from_bundle_metagraph",
        "enable_profiler",
    }
)
# The official server's, with an effect that the stand-in does not have: refused, and not silently dropped.
MISSING = frozenset(
    {
        "grpc_socket_path",
        "rest_api_enable_cors_support",
        "enable_per_model_batching_parameters",
        "tensorflow_session_config_file",
        "use_alts_credentials",
        "ssl_config_file",
        "platform_config_file",
        "per_process_gpu_memory_fraction",
        "grpc_channel_arguments",
        "enable_model_warmup",
        "num_request_iterations_for_warmup",
        "prefer_tflite_model",
        "num_tflite_pools",
        "num_tflite_interpreters_per_pool",
        "enable_signature_method_name_check",
        "xla_cpu_compilation_enabled",
        "xla_gpu_compilation_enabled",
        "thread_pool_factory_config_file",
        "mixed_precision",
        "skip_initialize_tpu",
        "enable_grpc_healthcheck_service",
        "enable_serialization_as_tensor_content",
    }
)


def parse(arguments: Sequence[str]) -> Flags:
    """Raises FlagError that names the argument; a flag that is given twice has its last value."""
    known: dict[str, Any] = {field.name: field.default for field in fields(Flags)}
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in MISSING:
            raise FlagError(
                f"--{name} is a flag of the official server that this stand-in does not implement"
            )
        if not argument.startswith("--") or name not in known | dict.fromkeys(IGNORED):
            raise FlagError(f"unknown argument: {argument}")
        if name in IGNORED:
            print(f"{argument} has no effect in this stand-in", file=sys.stderr, flush=True)
        else:
            values[name] = _value(argument, known[name], text if equals else None)
    return Flags(**values)


def _value(argument: str, default: Any, text: str | None) -> Any:
    if isinstance(default, bool):
        if text in (None, "true", "1"):
            return True
        if text in ("false", "0"):
            return False
    elif text is None:
        raise FlagError(f"{argument} needs a value: {argument}=VALUE")
    elif isinstance(default, str):
        return text
    else:
        try:
            return int(text)
        except ValueError:
            pass
    raise FlagError(f"Couldn't interpret value {text!r} for flag {argument.partition('=')[0]}")
