"""The program tensorflow_model_server."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from serving_stand_in import flags as command_line
from serving_stand_in.errors import ServingError, invalid
from serving_stand_in.flags import FlagError, Flags

if TYPE_CHECKING:
    from serving_stand_in.config import Model

logger = logging.getLogger(__name__)

FAILED = 255  # the official server returns -1


def main() -> int:
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s stand-in for TensorFlow Serving: %(message)s",
    )
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it calls sessions outdated
    try:
        flags = command_line.parse(sys.argv[1:])
    except FlagError as error:
        print(error, flush=True)
        return FAILED
    try:
        return asyncio.run(_serve(flags))
    except (ServingError, OSError) as error:
        print(f"Failed to start server. Error: {error}", flush=True)
        return FAILED


async def _serve(flags: Flags) -> int:
    # Here and not above: TensorFlow takes seconds to load, and a wrong flag is told at once.
    from aiohttp import web

    from serving_stand_in import config, rest, rpc
    from serving_stand_in.batching import Batching
    from serving_stand_in.core import Core
    from serving_stand_in.metrics import Metrics
    from serving_stand_in.runtime import VERSION

    if flags.version:
        print(f"TensorFlow ModelServer: stand-in\nTensorFlow Library: {VERSION}", flush=True)
        return 0
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)

    read = _models(flags)
    batching = None
    if flags.enable_batching:
        path = flags.batching_parameters_file
        batching = config.read_batching(path) if path else Batching()
    elif flags.batching_parameters_file:
        raise invalid(
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true."
        )
    metrics_path = (
        config.monitoring_path(flags.monitoring_config_file)
        if flags.monitoring_config_file
        else None
    )
    core = Core(flags, batching, Metrics())
    core.configure(read())
    # No port before every model has a version: so does the official server.
    await core.poll()
    while core.pending() and not stopped.is_set():
        await _either(stopped, 0.5)
        await core.poll()

    server = rpc.server(core)
    if flags.port:
        server.add_insecure_port(f"0.0.0.0:{flags.port}")
        await server.start()
        logger.info("Running gRPC ModelServer at 0.0.0.0:%d ...", flags.port)
    timeout = flags.rest_api_timeout_in_ms / 1000 if flags.rest_api_timeout_in_ms > 0 else None
    runner = web.AppRunner(
        rest.application(core, metrics_path, timeout), access_log=None, shutdown_timeout=0
    )
    await runner.setup()
    if flags.rest_api_port:
        await web.TCPSite(runner, "0.0.0.0", flags.rest_api_port).start()
        logger.info("Exporting HTTP/REST API at:localhost:%d ...", flags.rest_api_port)
    polling = asyncio.create_task(core.keep_polling(read))
    await stopped.wait()
    polling.cancel()
    await server.stop(None)
    await runner.cleanup()
    return 0


async def _either(stopped: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stopped.wait(), seconds)
    except TimeoutError:
        return


def _models(flags: Flags) -> Callable[[], list[Model]]:
    """Reads the models anew at each call."""
    from serving_stand_in import config

    if flags.model_config_file:
        return lambda: config.read_models(flags.model_config_file)
    if not flags.model_base_path:
        raise invalid(
            "Both server_options.model_base_path and server_options.model_config_file are empty!"
        )
    one = config.Model(flags.model_name, flags.model_base_path, None, 1, {})
    return lambda: [one]


if __name__ == "__main__":
    sys.exit(main())
