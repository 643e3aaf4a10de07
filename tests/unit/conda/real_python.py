"""This interpreter as a Conda package: the one that runs the tests, whatever it is."""

from __future__ import annotations

import os
import sys

from channel import Link, Package

SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
REAL_PYTHON = Package(
    "python",
    f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}",
    files={
        "pyvenv.cfg": f"home = {sys.base_prefix}/bin\ninclude-system-site-packages = false\n",
        "bin/python": Link(os.path.realpath(sys.executable)),
        f"{SITE}/README.txt": "",
    },
)
