"""The gRPC interface: PredictionService and ModelService with the official messages."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving_stand_in.core import Core, Spec, status_proto
from serving_stand_in.errors import Code, ServingError, invalid
from serving_stand_in.runtime import to_array, to_proto

_SIGNATURE_DEF = "signature_def"


def server(core: Core) -> grpc.aio.Server:
    """Not started, without a port."""
    # The official server accepts messages of any size.
    built = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(core), built)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(core), built)
    return built


def metadata_proto(core: Core, spec: Spec) -> tuple[Any, Any]:
    """GetModelMetadataResponse, and the signatures that it holds packed."""
    version = core.find(spec)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in core.saved_model(version).signatures.items():
        signatures.signature_def[name].CopyFrom(signature)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = spec.name
    response.model_spec.version.value = version.number
    response.metadata[_SIGNATURE_DEF].Pack(signatures)
    return response, signatures


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    def __init__(self, core: Core) -> None:
        self._core = core

    async def Predict(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            spec = _spec(request)
            version = self._core.find(spec)
            arrays = {name: to_array(tensor) for name, tensor in request.inputs.items()}
            outputs = await self._core.predict(version, spec, arrays)
            response = predict_pb2.PredictResponse()
            response.model_spec.name = spec.name
            response.model_spec.version.value = version.number
            response.model_spec.signature_name = spec.signature or "serving_default"
            for name in _filtered(list(outputs), list(request.output_filter)):
                response.outputs[name].CopyFrom(to_proto(outputs[name]))
            return response

        return await self._measured(request, context, answer)

    async def GetModelMetadata(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            if not request.metadata_field:
                raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
            for field in request.metadata_field:
                if field != _SIGNATURE_DEF:
                    raise invalid(f"Metadata field {field} is not supported")
            return metadata_proto(self._core, _spec(request))[0]

        return await _refusing(context, answer)

    async def _measured(
        self, request: Any, context: Any, answer: Callable[[], Awaitable[Any]]
    ) -> Any:
        started, status = time.monotonic(), "INTERNAL"

        async def observed() -> Any:
            nonlocal status
            try:
                result = await answer()
            except ServingError as error:
                status = error.code.name
                raise
            status = "OK"
            return result

        try:
            return await _refusing(context, observed)
        finally:
            self._core.metrics.request(
                request.model_spec.name, status, "GRPC", time.monotonic() - started
            )


class _Model(model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    def __init__(self, core: Core) -> None:
        self._core = core

    async def GetModelStatus(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            return status_proto(self._core.statuses(_spec(request)), get_model_status_pb2)

        return await _refusing(context, answer)


def _spec(request: Any) -> Spec:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    choice = spec.WhichOneof("version_choice")
    return Spec(
        spec.name,
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
        spec.signature_name,
    )


def _filtered(names: list[str], wanted: list[str]) -> list[str]:
    for name in wanted:
        if name not in names:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the "
                f"set {{{','.join(sorted(names))}}}."
            )
        if wanted.count(name) > 1:
            raise invalid(f"duplicate output tensor alias: {name}")
    return wanted or names


async def _refusing(context: Any, answer: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await answer()
    except ServingError as error:
        await context.abort(_status(error.code), error.message)


def _status(code: Code) -> grpc.StatusCode:
    return grpc.StatusCode[code.name]
