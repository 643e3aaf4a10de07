from __future__ import annotations

import sys

import pytest
from hypothesis import settings

# A busy machine is no fault of the code.
settings.register_profile("groundcrew", deadline=None)
settings.load_profile("groundcrew")


@pytest.fixture(autouse=True, scope="module")
def _empty_cloud() -> None:
    """A module starts with an empty AWS: moto keeps one account in a process, for servers too."""
    if "moto" in sys.modules:
        from moto.moto_api._internal.models import moto_api_backend

        moto_api_backend.reset()
