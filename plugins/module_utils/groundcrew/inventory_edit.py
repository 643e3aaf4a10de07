"""Edits of one value in a person's YAML file; every other byte stays.

PyYAML tells where each scalar stands, so the value alone is replaced: comments, quotes, order and
layout are the person's. Whatever cannot be edited so is refused with the edit to make by hand.
"""

from __future__ import annotations

from typing import Any

from . import model_store
from .errors import GroundcrewError


def set_version(text: str, model: str, version: str, file: str) -> tuple[str, str]:
    """The text with ``models: <model>: version:`` set to ``version``, and the version before.

    The text is that of ``file``, which messages name. Setting the version that stands there returns
    the same text. Raises GroundcrewError when the model is not in it, has variants, or its version
    is not a number of its own (a template, an alias, inherited by a merge).
    """
    # Not at the top: modules on hosts import this package, and hosts need no PyYAML.
    import yaml

    model_store.check_version(version)
    by_hand = f"Edit {file} by hand: models: {model}: version: must be {version}"
    document = _compose(text, file)
    entry = _value(_value(document, "models", file, by_hand), model, file, by_hand)
    if entry is None:
        raise GroundcrewError(
            f"{file} has no model {model} under models:. Declare it there, with "
            f'version: "{version}", and deploy'
        )
    if not isinstance(entry, yaml.MappingNode):
        raise GroundcrewError(f"{file}: models: {model}: is no map of its own. {by_hand}")
    if _value(entry, "variants", file, by_hand) is not None:
        raise GroundcrewError(
            f"{file}: model {model} has variants, so a version has a weight too. Edit them by hand: "
            f'add {{version: "{version}", weight: 0}} and run playbooks/canary.yml, or give the '
            f'model version: "{version}" instead of variants'
        )
    scalar = _value(entry, "version", file, by_hand)
    if scalar is None:
        raise GroundcrewError(f"{file}: model {model} has no version of its own. {by_hand}")
    start, end = scalar.start_mark.index, scalar.end_mark.index
    written, before = text[start:end], str(scalar.value)
    if (
        not isinstance(scalar, yaml.ScalarNode)
        or not model_store.is_version(before)
        or written not in (before, f'"{before}"', f"'{before}'")
    ):
        raise GroundcrewError(
            f"{file}: the version of model {model} is written as {written!r}, which is no number of "
            f"its own. {by_hand}"
        )
    edited = text[:start] + written.replace(before, version) + text[end:]
    # An alias is written somewhere else, and what has an anchor is read somewhere else too.
    if _plain(_compose(edited, file)) != _plain(document, scalar, version):
        raise GroundcrewError(
            f"{file}: the version of model {model} stands for others too, by an anchor or an alias. "
            f"{by_hand}"
        )
    return edited, before


def _compose(text: str, file: str) -> Any:
    import yaml

    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise GroundcrewError(f"{file} is not YAML: {error}") from error


def _value(node: Any, key: str, file: str, by_hand: str) -> Any:
    """The node of a key in a map; None when there is none. A key that is there twice is refused."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return None
    found = [
        value
        for name, value in node.value
        if isinstance(name, yaml.ScalarNode) and name.value == key
    ]
    if len(found) > 1:
        raise GroundcrewError(f"{file}: the key {key} is there {len(found)} times. {by_hand}")
    return found[0] if found else None


def _plain(node: Any, changed: Any = None, version: str = "") -> Any:
    """What a document says; with ``changed``, that one place of this node has another value.

    A node that stands in several places is told by its first one: the others keep the old value.
    """
    import yaml

    pending = [changed]

    def walk(one: Any) -> Any:
        if one is None:
            return None
        if isinstance(one, yaml.ScalarNode):
            if pending and one is pending[0]:
                pending.clear()
                return (one.tag, version)
            return (one.tag, one.value)
        if isinstance(one, yaml.SequenceNode):
            return (one.tag, [walk(item) for item in one.value])
        return (one.tag, [(walk(key), walk(value)) for key, value in one.value])

    try:
        return walk(node)
    except RecursionError:
        raise GroundcrewError("the file refers to itself by an alias; edit it by hand") from None
