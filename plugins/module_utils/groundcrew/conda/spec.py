"""What a person writes about a Conda environment: an ordinary environment.yml.

Refused rather than ignored: everything that the lock could not keep, such as addresses, paths and variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from rattler import MatchSpec
from rattler.exceptions import InvalidMatchSpecError

from ..errors import GroundcrewError
from .lock import check_name, spec_digest

_KEYS = ("name", "channels", "dependencies")
_INSTEAD = {
    "prefix": "The role conda_environment decides where environments lie. Remove the line.",
    "variables": "Set them where the environment is used: `env` of a job or service. Remove it.",
    "platforms": "The platforms are those of `conda_platforms`. Remove it.",
}
_PIP_INSTEAD = {
    "-r": "List the requirements themselves",
    "--requirement": "List the requirements themselves",
    "-e": "Publish the project as a wheel and pin its version",
    "--editable": "Publish the project as a wheel and pin its version",
    "-c": "Pin the packages themselves",
    "--constraint": "Pin the packages themselves",
}
_INDEX = "The index is that of the environment variable UV_INDEX_URL or PIP_INDEX_URL"
_BRACKET = re.compile(r"\[(.*)\]\s*\Z", re.DOTALL)
_BRACKET_KEYS = ("version", "build", "build_number")


@dataclass(frozen=True)
class Spec:
    """A checked environment.yml; ``warnings`` says what could be better."""

    name: str
    sha256: str
    channels: tuple[str, ...]
    dependencies: tuple[str, ...]
    pip: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """The packages that it asks for."""
        conda = (str(match(text).name.normalized) for text in self.dependencies)
        return frozenset(conda) | frozenset(pip_name(Requirement(text).name) for text in self.pip)


def pip_name(name: str) -> str:
    """The normal form of a Python package's name (https://packaging.python.org/en/latest/specifications/name-normalization/)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def match(text: str) -> MatchSpec:
    """Conda's reading of a dependency. Not rattler's strict one: it refuses ``name=1.2=build*``, which people write."""
    return MatchSpec(text, strict=False)


def read_spec(name: str, content: bytes, source: str = "") -> Spec:
    """Check the text of ``<name>.yml``. ``source`` names the file in messages.

    Raises GroundcrewError: what is wrong, and what to write instead.
    """
    source = source or f"{check_name(name)}.yml"
    try:
        data = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise GroundcrewError(f"{source} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise GroundcrewError(
            f"{source} is empty or no mapping. It is an environment.yml: channels and dependencies."
        )
    for key in data:
        if key not in _KEYS:
            instead = _INSTEAD.get(str(key), f"Known are {', '.join(_KEYS)}.")
            raise GroundcrewError(f"{source}: '{key}' is not used here. {instead}")
    if data.get("name", name) != name:
        raise GroundcrewError(
            f"{source}: name is '{data['name']}', the file says '{name}'. Remove the line or rename the file."
        )
    channels = tuple(c for c in _texts(data, "channels", source) if c != "nodefaults")
    for channel in channels:
        if "://" in channel or channel.startswith("/"):
            raise GroundcrewError(
                f"{source}: channel '{channel}' is an address, which a lock must not hold. Give it a name in"
                " `conda_channels` (inventories/shared/group_vars/all/conda.yml) and write that."
            )
    if not channels:
        raise GroundcrewError(f"{source}: channels is missing. Write, for example: [conda-forge]")

    dependencies: list[str] = []
    pip: list[str] = []
    warnings: list[str] = []
    entries = data.get("dependencies")
    if not isinstance(entries, list) or not entries:
        raise GroundcrewError(f"{source}: dependencies is missing or no list.")
    for entry in entries:
        if isinstance(entry, Mapping) and list(entry) == ["pip"]:
            pip += [_requirement(text, source) for text in _texts(entry, "pip", source)]
        elif isinstance(entry, str):
            dependencies.append(_dependency(entry, source))
        else:
            raise GroundcrewError(
                f"{source}: dependency '{entry}' is neither text nor `pip:`. Quote it, as in \"numpy=2.4.6\"."
            )
    unpinned = [d for d in dependencies if not match(d).version and not match(d).build]
    unpinned += [f"{r} (pip)" for r in pip if not Requirement(r).specifier]
    warnings += [
        f"{source}: {dependency} has no version, so any `make lock` may change it. Pin it, as in"
        f" {dependency.split()[0]}{'==' if dependency.endswith('(pip)') else '='}1.2"
        for dependency in unpinned
    ]
    return Spec(
        name, spec_digest(content), channels, tuple(dependencies), tuple(pip), tuple(warnings)
    )


def _texts(data: Mapping[str, Any], key: str, source: str) -> list[str]:
    found = data.get(key) or []
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise GroundcrewError(f"{source}: {key} must be a list of texts, it is: {found}")
    return [item.strip() for item in found]


def _dependency(text: str, source: str) -> str:
    def fail(why: str) -> GroundcrewError:
        return GroundcrewError(f"{source}: dependency '{text}': {why}")

    if "::" in text:
        raise fail(
            "a channel in front of a package is not supported. The order of `channels` decides."
        )
    if "://" in text or text.startswith(("/", ".", "~")):
        raise fail(
            "an address or a path cannot be locked. Put the package into a channel and name it."
        )
    bracket = _BRACKET.search(text)
    for item in re.findall(r"([a-z0-9_]+)\s*=", bracket.group(1)) if bracket else []:
        if item not in _BRACKET_KEYS:
            raise fail(f"'{item}' in brackets is not supported, only {', '.join(_BRACKET_KEYS)}.")
    try:
        match(text)
    except InvalidMatchSpecError as error:
        raise fail(f"{str(error).splitlines()[0]}. Write, for example, numpy=2.4.6") from None
    if str(match(text).name.normalized).startswith("__"):
        raise fail("a virtual package belongs into `conda_virtual_packages`.")
    return text


def _requirement(text: str, source: str) -> str:
    if text.startswith("-"):
        option = re.split(r"[\s=]", text)[0]
        instead = _PIP_INSTEAD.get(option, _INDEX)
        raise GroundcrewError(
            f"{source}: pip option '{text}' is not supported: a lock holds releases and hashes. {instead}."
        )
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise GroundcrewError(
            f"{source}: '{text}' in the pip section is no requirement ({str(error).splitlines()[0]})."
            " Write name==version; paths and addresses cannot be locked."
        ) from None
    if requirement.url:
        raise GroundcrewError(
            f"{source}: '{text}' in the pip section is an address, which cannot be locked. Publish it to the"
            " package index and pin its version."
        )
    return text
