"""The configuration files: protobuf in text form, read with the official messages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,  # noqa: F401  (the messages below refer to its file)
)
from tensorflow_serving.config import model_server_config_pb2

from serving_stand_in.batching import Batching
from serving_stand_in.errors import Code, ServingError, invalid

# Messages that the package tensorflow-serving-api leaves out (config/monitoring_config.proto and
# servables/tensorflow/session_bundle_config.proto): field number, type, name.
_INT64, _STRING, _BOOL = (f"google.protobuf.{kind}Value" for kind in ("Int64", "String", "Bool"))
_MESSAGES: dict[str, list[tuple[int, str, str]]] = {
    "PrometheusConfig": [(1, "bool", "enable"), (2, "string", "path")],
    "MonitoringConfig": [(1, "stand_in.PrometheusConfig", "prometheus_config")],
    "BatchingParameters": [
        (1, _INT64, "max_batch_size"),
        (2, _INT64, "batch_timeout_micros"),
        (3, _INT64, "max_enqueued_batches"),
        (4, _INT64, "num_batch_threads"),
        (5, _STRING, "thread_pool_name"),
        (6, "repeated int64", "allowed_batch_sizes"),
        (7, "bool", "pad_variable_length_inputs"),
        (8, _BOOL, "enable_large_batch_splitting"),
        (9, _INT64, "max_execution_batch_size"),
    ],
}


def _message_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="stand_in.proto",
        package="stand_in",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    for name, messages in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, kind, field_name in messages:
            field = message.field.add(name=field_name, number=number)
            field.label = (
                field.LABEL_REPEATED if kind.startswith("repeated ") else field.LABEL_OPTIONAL
            )
            scalar = kind.removeprefix("repeated ")
            if "." in scalar:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{scalar}"
            else:
                field.type = getattr(field, f"TYPE_{scalar.upper()}")
    pool = descriptor_pool.Default()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"stand_in.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _message_classes()


@dataclass(frozen=True)
class Model:
    """One entry of model_config_list. ``versions`` are the specific ones; None: the latest ``latest`` or all."""

    name: str
    base_path: str
    versions: tuple[int, ...] | None
    latest: int | None
    labels: dict[str, int]


def read_models(path: str) -> list[Model]:
    """The models of a --model_config_file."""
    config = _read(path, model_server_config_pb2.ModelServerConfig())
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid("custom_model_config is not implemented by this stand-in")
    models = [_model(entry) for entry in config.model_config_list.config]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise invalid(f"Illegal to list model {name} multiple times in config list")
    return models


def _model(entry: Any) -> Model:
    if not entry.name or not entry.base_path:
        raise invalid(f"Expected model {entry.name} to have a name and a base path")
    if not entry.base_path.startswith("/"):
        raise invalid(
            f"Expected model {entry.name} to have an absolute path; got base_path()="
            f"{entry.base_path}"
        )
    if entry.model_platform != "tensorflow":
        raise invalid(f"Illegal setting of model_platform: {entry.model_platform!r}")
    policy = entry.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    for label in entry.version_labels:
        if not re.fullmatch(r"[a-zA-Z0-9_]+", label):
            raise invalid(f"Version label {label!r} may hold letters, digits and _ only")
    return Model(
        name=entry.name,
        base_path=entry.base_path,
        versions=tuple(policy.specific.versions) if choice == "specific" else None,
        latest=None if choice == "all" else max(1, policy.latest.num_versions),
        labels=dict(entry.version_labels),
    )


def monitoring_path(path: str) -> str | None:
    """Where metrics are served, or None."""
    config = _read(path, _CLASSES["MonitoringConfig"]()).prometheus_config
    return str(config.path or "/monitoring/prometheus/metrics") if config.enable else None


def read_batching(path: str) -> Batching:
    parameters = _read(path, _CLASSES["BatchingParameters"]())
    if parameters.pad_variable_length_inputs or parameters.allowed_batch_sizes:
        raise invalid(
            "pad_variable_length_inputs and allowed_batch_sizes are not implemented by this stand-in"
        )
    given = {
        name: getattr(parameters, name).value
        for name in (
            "max_batch_size",
            "batch_timeout_micros",
            "max_enqueued_batches",
            "num_batch_threads",
        )
        if parameters.HasField(name)
    }
    size = given.get("max_batch_size", Batching.max_batch_size)
    split = parameters.enable_large_batch_splitting.value
    execution = parameters.max_execution_batch_size.value if split else 0
    if execution > size:
        raise invalid(
            f"max_batch_size: {size} should be larger than or equal to max_execution_batch_size: "
            f"{execution}"
        )
    batching = Batching(**given, max_execution_batch_size=execution or size, split=split)
    if batching.num_batch_threads < 1 or batching.max_enqueued_batches < 1 or size < 1:
        raise invalid(f"{path}: threads, batches and sizes must be positive")
    return batching


def _read(path: str, message: Any) -> Any:
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ServingError(Code.NOT_FOUND, f"{path}; {error.strerror}") from error
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise invalid(f"Invalid protobuf file: '{path}': {error}") from error
