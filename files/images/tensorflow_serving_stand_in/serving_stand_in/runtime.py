"""TensorFlow itself: one SavedModel in a session of its own, as the official server runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import session
from tensorflow.python.framework import dtypes, errors_impl, ops, tensor_util, versions
from tensorflow.python.saved_model import loader_impl

from serving_stand_in.errors import Code, ServingError, invalid

VERSION = str(versions.VERSION)
_DEFAULT_SIGNATURE = "serving_default"
# TensorProto's field for each type that it does not keep as bytes.
_FIELDS = {"f4": "float_val", "f8": "double_val", "i8": "int64_val", "b1": "bool_val"}


class SavedModel:
    """A loaded version. Raises ServingError when it cannot be loaded or run."""

    def __init__(self, path: str, tags: list[str], intra: int, inter: int) -> None:
        config = config_pb2.ConfigProto(
            intra_op_parallelism_threads=intra, inter_op_parallelism_threads=inter
        )
        self._graph = ops.Graph()
        self._session = session.Session(graph=self._graph, config=config)
        self._calls: dict[tuple[str, tuple[str, ...]], Any] = {}
        try:
            with self._graph.as_default():
                self._meta_graph = loader_impl.load(self._session, tags, path)
        except errors_impl.OpError as error:
            raise _translated(error) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise ServingError(Code.NOT_FOUND, str(error)) from error

    def close(self) -> None:
        self._session.close()

    @property
    def signatures(self) -> Mapping[str, Any]:
        """SignatureDef by name."""
        signatures: Mapping[str, Any] = self._meta_graph.signature_def
        return signatures

    def signature(self, name: str) -> Any:
        signature = self.signatures.get(name or _DEFAULT_SIGNATURE)
        if signature is None:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f'Serving signature key "{name or _DEFAULT_SIGNATURE}" not found.',
            )
        return signature

    def input_types(self, name: str) -> dict[str, str]:
        """The type of each input of a signature, such as float."""
        signature = self.signatures.get(name or _DEFAULT_SIGNATURE)
        if signature is None:
            raise invalid(
                f'Serving signature name: "{name or _DEFAULT_SIGNATURE}" not found in signature def'
            )
        if not signature.inputs:
            raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
        return {
            alias: types_pb2.DataType.Name(signature.inputs[alias].dtype)
            .removeprefix("DT_")
            .lower()
            for alias in sorted(signature.inputs)
        }

    def check(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises ServingError unless these are the signature's inputs."""
        _check_inputs(self.signature(name), arrays)

    def run(self, name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The signature's outputs by name. Blocks; may be called from several threads."""
        signature = self.signature(name)
        order = tuple(sorted(arrays))
        try:
            call = self._calls.get((name, order))
            if call is None:
                # Not make_callable: it checks shapes in Python, and the official server has no Python.
                options = config_pb2.CallableOptions(
                    feed=[signature.inputs[alias].name for alias in order],
                    fetch=[signature.outputs[alias].name for alias in sorted(signature.outputs)],
                )
                call = self._session._make_callable_from_options(options)
                self._calls[name, order] = call
            values = call(*(arrays[alias] for alias in order))
        except errors_impl.OpError as error:
            raise _translated(error) from error
        return dict(zip(sorted(signature.outputs), values, strict=True))


def _check_inputs(signature: Any, arrays: Mapping[str, np.ndarray]) -> None:
    sent, wanted = set(arrays), set(signature.inputs)
    if len(sent) != len(wanted):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len("
            f"{_braces(sent)}) != len({_braces(wanted)}). Sent extra: {_braces(sent - wanted)}. "
            f"Missing but required: {_braces(wanted - sent)}."
        )
    if sent != wanted:
        raise invalid(
            f"input tensor alias not found in signature: {min(sent - wanted)}. Inputs expected to "
            f"be in the set {_braces(wanted)}."
        )
    for alias, array in arrays.items():
        kind = dtypes.as_dtype(signature.inputs[alias].dtype)
        # The official server finds this when it runs the graph, in the same words.
        if dtypes.as_dtype(array.dtype) != kind:
            found = dtypes.as_dtype(array.dtype).name
            raise invalid(
                f"Expects arg[0] to be {_cpp_name(kind.name)} but {_cpp_name(found)} is provided"
            )


def _braces(names: set[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _cpp_name(name: str) -> str:
    return {"float32": "float", "float64": "double"}.get(name, name)


def _translated(error: Any) -> ServingError:
    """The error of a computation: the words of C++, without Python's own after them."""
    code = next(
        (code for code in Code if getattr(errors_impl, code.name, None) == error.error_code),
        Code.INTERNAL,
    )
    message = str(error.message)
    return ServingError(code, message.split("\n\nOriginal stack trace")[0])


def to_array(tensor: Any) -> np.ndarray:
    """An array from a TensorProto. Raises ServingError when its content does not fit its shape."""
    try:
        array: np.ndarray = tensor_util.MakeNdarray(tensor)
    except (TypeError, ValueError) as error:
        raise invalid(f"tensor parsing error: {error}") from error
    return array


def to_proto(array: np.ndarray) -> Any:
    """A TensorProto with its values in the field of their type, as the official server answers."""
    kind = dtypes.as_dtype(array.dtype)
    field = _FIELDS.get(array.dtype.str[1:])
    if field is None:
        return tensor_util.make_tensor_proto(array, dtype=kind, shape=array.shape)
    proto = tensor_pb2.TensorProto(dtype=kind.as_datatype_enum)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, field).extend(array.ravel().tolist())
    return proto
