"""Two tiny packages `python`: the distribution's CPython 3.11 and its PyPy, which is a Python 3.9.

Each is a virtual environment that says it is none. A real Conda interpreter is none either, and pip looks at EXTERNALLY-MANAGED,
and installs into the prefix, only outside of virtual environments.
"""

from __future__ import annotations

from conda_package import Link, Package

_PYVENV = "home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n"
# Not sitecustomize.py: Debian has one in its standard library, which comes first. Debian's sysconfig would have pip install into
# local/lib/python3.11/dist-packages outside of virtual environments: the two schemes of Python itself are put back.
_LIKE_CONDA = """\
import sys
import sysconfig

sys.base_prefix, sys.base_exec_prefix = sys.prefix, sys.exec_prefix
sysconfig._BASE_PREFIX, sysconfig._BASE_EXEC_PREFIX = sys.prefix, sys.exec_prefix
sysconfig._get_preferred_schemes = lambda: {
    "prefix": "posix_prefix", "home": "posix_home", "user": "posix_user"
}
"""


def _python(version: str, build: str, library: str, program: str) -> Package:
    short = version.rpartition(".")[0]
    site = f"lib/{library}/site-packages"
    return Package(
        "python",
        version,
        build=build,
        files={
            "pyvenv.cfg": _PYVENV.format(version=version),
            f"bin/{program}": Link(f"/usr/bin/{program}"),
            **{
                f"bin/{name}": Link(program)
                for name in ("python", "python3", f"python{short}")
                if name != program
            },
            f"{site}/like_conda.pth": "import like_conda\n",
            f"{site}/like_conda.py": _LIKE_CONDA,
        },
        index={"python_site_packages_path": site},
    )


CPYTHON = _python("3.11.2", "0_cpython", "python3.11", "python3.11")
PYPY = _python("3.9.16", "0_73_pypy", "pypy3.9", "pypy3.9")
