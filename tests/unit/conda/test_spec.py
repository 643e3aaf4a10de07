"""environment.yml as people write it, and what a lock could not keep."""

from __future__ import annotations

import pytest
from groundcrew.conda.spec import read_spec
from groundcrew.errors import GroundcrewError

GOOD = b"""\
name: digits
channels: [conda-forge, nodefaults]
dependencies:
  - python=3.11
  - numpy >=2,<3
  - pytorch=2.5=cuda12*
  - scipy[version=">=1.17", build="py311*"]
  - Pip
  - pip:
      - requests[socks]==2.32.3
      - rich
"""


def test_an_ordinary_file_is_read() -> None:
    spec = read_spec("digits", GOOD)
    assert spec.channels == ("conda-forge",)
    assert spec.dependencies[:2] == ("python=3.11", "numpy >=2,<3")
    assert spec.pip == ("requests[socks]==2.32.3", "rich")
    assert spec.names == {"python", "numpy", "pytorch", "scipy", "pip", "requests", "rich"}


def test_what_has_no_version_is_a_warning_that_says_how_to_pin() -> None:
    first, second = read_spec("digits", GOOD, "files/conda/digits.yml").warnings
    assert "files/conda/digits.yml: Pip has no version" in first and "Pip=1.2" in first
    assert "rich (pip) has no version" in second and "rich==1.2" in second


def spec(dependencies: str = "[python=3.11]", channels: str = "[local]", more: str = "") -> str:
    return f"channels: {channels}\ndependencies: {dependencies}\n{more}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML"),
        ("", "is empty or no mapping"),
        ("- python", "is empty or no mapping"),
        (spec(more="prefix: /opt/x"), "'prefix' is not used here. The role conda_environment"),
        (spec(more="variables: {A: 1}"), "'variables' is not used here. Set them where"),
        (spec(more="platforms: [linux-64]"), "`conda_platforms`"),
        (spec(more="pip: [x]"), "'pip' is not used here. Known are name, channels, dependencies"),
        (spec(more="name: other"), "name is 'other', the file says 'digits'"),
        (spec(channels="[]"), "channels is missing"),
        (spec(channels="conda-forge"), "channels must be a list of texts"),
        (spec(channels="['https://example.org/c']"), "is an address, which a lock must not hold"),
        (spec(channels="[/srv/channel]"), "is an address, which a lock must not hold"),
        (spec("[]"), "dependencies is missing or no list"),
        (spec("python"), "dependencies is missing or no list"),
        (spec("[3.11]"), "dependency '3.11' is neither text nor `pip:`"),
        (spec("[{conda: [x]}]"), "is neither text nor `pip:`"),
        (spec("['conda-forge::numpy']"), "a channel in front of a package is not supported"),
        (spec("['https://e.org/a-1-0.conda']"), "an address or a path cannot be locked"),
        (spec("['./a-1-0.conda']"), "an address or a path cannot be locked"),
        (spec("['numpy[channel=x]']"), "'channel' in brackets is not supported"),
        (spec("['numpy[url=x]']"), "'url' in brackets is not supported"),
        (spec("['numpy*']"), "looks like a glob"),
        (spec("['numpy >>2']"), "dependency 'numpy >>2'"),
        (spec("['__cuda >=12']"), "`conda_virtual_packages`"),
        (spec("[{pip: x}]"), "pip must be a list of texts"),
        (spec("[{pip: ['-e .']}]"), "pip option '-e .' is not supported"),
        (spec("[{pip: ['-r more.txt']}]"), "List the requirements themselves"),
        (spec("[{pip: ['--index-url https://e.org']}]"), "UV_INDEX_URL or PIP_INDEX_URL"),
        (spec("[{pip: ['--extra-index-url=https://e.org']}]"), "UV_INDEX_URL"),
        (spec("[{pip: ['./dist/x.whl']}]"), "is no requirement"),
        (spec("[{pip: ['git+https://e.org/x']}]"), "is no requirement"),
        (spec("[{pip: ['x @ https://e.org/x.whl']}]"), "is an address, which cannot be locked"),
    ],
)
def test_what_a_lock_cannot_keep_is_refused(text: str, words: str) -> None:
    with pytest.raises(GroundcrewError) as caught:
        read_spec("digits", text.encode(), "files/conda/digits.yml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("files/conda/digits.yml")
