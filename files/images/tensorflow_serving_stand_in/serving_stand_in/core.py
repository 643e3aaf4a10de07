"""Which versions are loaded, their states, and the calls that REST and gRPC share (model_servers/server_core.cc)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serving_stand_in.batching import Batcher, Batching
from serving_stand_in.config import Model
from serving_stand_in.errors import Code, ServingError, invalid
from serving_stand_in.flags import Flags
from serving_stand_in.metrics import Metrics
from serving_stand_in.runtime import SavedModel

logger = logging.getLogger(__name__)


@dataclass
class Version:
    """A version that the server knows; its state is one of GetModelStatus's."""

    number: int
    path: str
    state: str = "START"
    error: ServingError | None = None
    model: SavedModel | None = None
    attempts: int = 0
    retry_at: float = 0.0
    batchers: dict[str, Batcher] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """Which version a request means; without version and label the latest."""

    name: str
    version: int | None = None
    label: str | None = None
    signature: str = ""


class Core:
    """The models of one configuration; everything but computing and loading runs on the event loop."""

    def __init__(self, flags: Flags, batching: Batching | None, metrics: Metrics) -> None:
        self.metrics = metrics
        self._flags, self._batching = flags, batching
        self._models: dict[str, Model] = {}
        self._versions: dict[str, dict[int, Version]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        threads = batching.num_batch_threads if batching else 2
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="run")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    # -- configuration and loading ---------------------------------------------------------------

    def configure(self, models: list[Model]) -> None:
        """Serve these models. Raises ServingError, and changes nothing, when a label is not allowed."""
        labels = {model.name: dict(model.labels) for model in models}
        for model in models:
            for label, number in model.labels.items():
                known = self._labels.get(model.name, {}).get(label)
                free = self._flags.allow_version_labels_for_unavailable_models and known in (
                    None,
                    number,
                )
                version = self._versions.get(model.name, {}).get(number)
                if not free and (version is None or version.state != "AVAILABLE"):
                    raise ServingError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {number} of model {model.name}, which "
                        "is not currently available for inference",
                    )
        self._models = {model.name: model for model in models}
        self._labels = labels

    async def poll(self) -> None:
        """Load what the folders and the policy ask for, unload what they no longer ask for."""
        for model in self._models.values():
            known = self._versions.setdefault(model.name, {})
            wanted = _wanted(model)
            for number, path in wanted.items():
                version = known.get(number)
                if version is None or (version.state == "END" and version.error is None):
                    known[number] = version = Version(number, path)
                if version.state == "START" and time.monotonic() >= version.retry_at:
                    await self._load(model.name, version)
            # A version stays until one of its successors is there.
            if any(known[number].state == "AVAILABLE" for number in wanted):
                self._unload(known, keep=set(wanted))
        for name in self._versions.keys() - self._models.keys():
            self._unload(self._versions[name], keep=set())

    async def _load(self, name: str, version: Version) -> None:
        flags = self._flags
        parallelism = flags.tensorflow_session_parallelism
        version.state = "LOADING"
        version.attempts += 1
        try:
            version.model = await asyncio.get_running_loop().run_in_executor(
                self._loader,
                SavedModel,
                version.path,
                flags.saved_model_tags.split(","),
                flags.tensorflow_intra_op_parallelism or parallelism or 1,
                flags.tensorflow_inter_op_parallelism or parallelism or 1,
            )
        except ServingError as error:
            logger.error(
                "Loading servable: {name: %s version: %d} failed: %s", name, version.number, error
            )
            if version.attempts > flags.max_num_load_retries:
                version.state, version.error = "END", error
            else:
                version.state = "START"
                version.retry_at = time.monotonic() + flags.load_retry_interval_micros / 1e6
        else:
            version.state = "AVAILABLE"
            logger.info(
                "Successfully loaded servable version {name: %s version: %d}", name, version.number
            )

    def _unload(self, known: dict[int, Version], keep: set[int]) -> None:
        for version in known.values():
            if version.number not in keep and version.model is not None:
                # Not closed: a computation may still run in it, and it goes with the last reference.
                version.model, version.state, version.batchers = None, "END", {}

    def pending(self) -> list[str]:
        """The models without an available version. Raises ServingError when one cannot get any."""
        pending, failed = [], []
        for name in self._models:
            versions = self._versions.get(name, {}).values()
            if any(version.state == "AVAILABLE" for version in versions):
                continue
            pending.append(name)
            failed += [
                f"{{{{name: {name} version: {version.number}}} due to error: {version.error}}}, "
                for version in versions
                if version.error is not None
            ]
        if failed:
            raise ServingError(
                Code.INTERNAL,
                f"{len(failed)} model(s) did not become available: {{{''.join(failed)}}}",
            )
        return pending

    # -- requests --------------------------------------------------------------------------------

    def find(self, spec: Spec) -> Version:
        """The available version that a request means. Raises ServingError."""
        number = spec.version
        if spec.label is not None:
            number = self._labels.get(spec.name, {}).get(spec.label)
            if number is None:
                raise invalid(f"Unrecognized servable version label: {spec.label}")
        available = {
            version.number: version
            for version in self._versions.get(spec.name, {}).values()
            if version.state == "AVAILABLE"
        }
        if number is None and available:
            return available[max(available)]
        if number in available:
            return available[number]
        request = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
        raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {request}")

    def statuses(self, spec: Spec) -> list[Version]:
        """Versions for GetModelStatus, newest first. Raises ServingError when there are none."""
        versions = self._versions.get(spec.name, {})
        if spec.version is not None:
            if spec.version not in versions:
                raise ServingError(
                    Code.NOT_FOUND, f"Could not find version {spec.version} of model {spec.name}"
                )
            return [versions[spec.version]]
        if not versions:
            raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        return [versions[number] for number in sorted(versions, reverse=True)]

    def saved_model(self, version: Version) -> SavedModel:
        if version.model is None:
            raise ServingError(Code.UNAVAILABLE, f"version {version.number} was just unloaded")
        return version.model

    async def predict(
        self, version: Version, spec: Spec, arrays: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The outputs by name. Raises ServingError."""
        model = self.saved_model(version)
        model.check(spec.signature, arrays)

        def run(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            started = time.monotonic()
            answer = model.run(spec.signature, batch)
            self.metrics.runtime(spec.name, time.monotonic() - started)
            return answer

        if self._batching is None:
            return await asyncio.get_running_loop().run_in_executor(self._executor, run, arrays)
        batcher = version.batchers.get(spec.signature)
        if batcher is None:
            batcher = version.batchers[spec.signature] = Batcher(
                run, self._batching, self._executor
            )
        return await batcher.submit(arrays)

    async def keep_polling(self, read: Callable[[], list[Model]]) -> None:
        """Poll folders, and the configuration where that is asked for, until cancelled."""
        flags, last = self._flags, time.monotonic()
        seconds = flags.file_system_poll_wait_seconds
        again = flags.model_config_file_poll_wait_seconds if flags.model_config_file else 0
        waits = [one for one in (seconds, again) if one > 0]
        while waits:
            await asyncio.sleep(min(waits))
            if again > 0 and time.monotonic() - last >= again:
                last = time.monotonic()
                try:
                    self.configure(read())
                except ServingError as error:
                    logger.error("PollFilesystemAndReloadConfig failed to ReloadConfig: %s", error)
            await self.poll()


def _wanted(model: Model) -> dict[int, str]:
    """Numbers and paths of the versions in a model's folder that its policy asks for."""
    try:
        found: dict[int, str] = {
            int(path.name): str(path)
            for path in Path(model.base_path).iterdir()
            if path.name.isdecimal() and path.is_dir()
        }
    except OSError as error:
        logger.error(
            "FileSystemStoragePathSource encountered a filesystem access error: Could not find base "
            "path %s for servable %s with error %s",
            model.base_path,
            model.name,
            error.strerror,
        )
        return {}
    if not found:
        logger.warning(
            "No versions of servable %s found under base path %s. Did you forget to name your leaf "
            "directory as a number (eg. '/1/')?",
            model.name,
            model.base_path,
        )
    if model.versions is not None:
        for number in model.versions:
            if number not in found:
                logger.warning(
                    "Version %d of servable %s, which was requested to be served as a 'specific' "
                    "version in the servable's config, was not found in the file system",
                    number,
                    model.name,
                )
        return {number: found[number] for number in model.versions if number in found}
    newest = sorted(found, reverse=True)[: model.latest]
    return {number: found[number] for number in newest}


def status_proto(versions: list[Version], messages: Any) -> Any:
    """GetModelStatusResponse of ``messages`` (get_model_status_pb2)."""
    response = messages.GetModelStatusResponse()
    for version in versions:
        entry = response.model_version_status.add(
            version=version.number,
            state=messages.ModelVersionStatus.State.Value(version.state),
        )
        if version.error is not None:
            entry.status.error_message = version.error.message
            entry.status.error_code = _code_number(version.error.code)
        else:
            entry.status.error_code = 0
    return response


def _code_number(code: Code) -> int:
    import grpc

    return int(grpc.StatusCode[code.name].value[0])
