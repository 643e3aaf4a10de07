"""``python -m digits_application``: serve the application with Granian, in WSGI mode."""

from __future__ import annotations

import sys

from granian.constants import Interfaces
from granian.server import Server
from groundcrew.errors import GroundcrewError
from groundcrew_application.prediction import read_api_key

from digits_application import logs
from digits_application.settings import GATEWAY, Settings


def main() -> None:
    try:
        settings = Settings.from_environment()
        if settings.prediction_mode == GATEWAY:
            read_api_key(settings.api_key_file)
    except GroundcrewError as error:  # said once and clearly, before any process is started
        sys.exit(f"digits_application: {error}")
    Server(
        "digits_application.app:create_app",
        factory=True,
        interface=Interfaces.WSGI,
        address=settings.host,
        port=settings.port,
        workers=1,  # one process, so that its metrics and its batch run are the only ones
        blocking_threads=8,
        websockets=False,
        log_dictconfig=logs.CONFIGURATION,
    ).serve()


if __name__ == "__main__":
    main()
