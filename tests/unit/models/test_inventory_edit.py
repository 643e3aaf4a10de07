from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from groundcrew import inventory_edit
from groundcrew.errors import GroundcrewError
from hypothesis import given
from hypothesis import strategies as st

FILE = "inventories/prod/group_vars/prod/models.yml"
SHIPPED = sorted(Path(__file__).parents[3].glob("inventories/*/group_vars/*/models.yml"))


def set_version(text: str, version: str = "4", model: str = "digits") -> tuple[str, str]:
    return inventory_edit.set_version(text, model, version, FILE)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_shipped_files_change_in_one_line(path):
    text = path.read_text()
    edited, before = set_version(text, "44")
    old, new = text.splitlines(), edited.splitlines()
    assert len(old) == len(new)
    (line,) = [
        number for number, pair in enumerate(zip(old, new, strict=True)) if len(set(pair)) > 1
    ]
    assert old[line].replace(f'version: "{before}"', 'version: "44"', 1) == new[line]
    assert set_version(edited, "44") == (edited, "44")
    assert set_version(edited, before) == (text, "44")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('models: {digits: {version: "3"}}', 'models: {digits: {version: "4"}}'),
        ("models: {digits: {version: '3', x: 1}}", "models: {digits: {version: '4', x: 1}}"),
        (
            "models:\n  digits:\n    version: 3   # why",
            "models:\n  digits:\n    version: 4   # why",
        ),
        (
            "models:\r\n  digits:\r\n    version: 3\r\n",
            "models:\r\n  digits:\r\n    version: 4\r\n",
        ),
        ('"models":\n  "digits": {"version": "3"}', '"models":\n  "digits": {"version": "4"}'),
        ("\ufeffmodels: {digits: {version: 3}}", "\ufeffmodels: {digits: {version: 4}}"),
        (
            "# größer 🙂\nmodels:\n  digits: {version: 3}\nx: !vault |\n  3\n",
            "# größer 🙂\nmodels:\n  digits: {version: 4}\nx: !vault |\n  3\n",
        ),
    ],
)
def test_layout_quotes_and_comments_stay(written, expected):
    assert set_version(written) == (expected, "3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no model digits under models:"),
        ("models: {other: {version: 1}}", "has no model digits under models:"),
        ("models: {digits: {variants: [{version: 3, weight: 100}]}}", "has variants.*weight: 0"),
        ("models: {digits: {framework: sklearn}}", "no version of its own.*Edit inventories/prod"),
        ('models: {digits: {version: "{{ x }}"}}', "which is no number of its own"),
        ("models: {digits: {version: [3]}}", "which is no number of its own"),
        ("models: {digits: {version: |\n 3\n}}", "not YAML|no number of its own"),
        ("models:\n  digits:\n    version: >-\n      3\n", "no number of its own"),
        ("models: {digits: {version: !!str 3}}", "no number of its own"),
        ("models: {digits: {version: 3, version: 4}}", "key version is there 2 times"),
        ("models: {digits: {version: 3}, digits: {version: 4}}", "key digits is there 2 times"),
        ("v: &v 3\nmodels: {digits: {version: *v}}", "no number of its own|by an anchor"),
        ("models: {a: {version: &v 3}, digits: {version: *v}}", "no number of its own"),
        ("models: {digits: {version: &v 3}, b: {version: *v}}", "no number of its own"),
        ("models: {digits: &d {version: 3}, b: *d}", "by an anchor or an alias"),
        ("models: {a: &d {version: 3}, digits: *d}", "by an anchor or an alias"),
        ("models: {digits: *d}", "is not YAML"),
        ("a: &b {version: 3}\nmodels: {digits: {<<: *b}}", "no version of its own"),
        ("models: {digits: 3}", "is no map of its own"),
        ("models: &m\n  digits: {version: 3}\nx: *m", "by an anchor or an alias"),
        ("models: &m\n  digits: {version: 3}\n  x: *m", "refers to itself|by an anchor"),
        ("---\nmodels: {digits: {version: 3}}\n---\nx: 1", "is not YAML"),
    ],
)
def test_what_cannot_be_edited_so_is_refused_with_the_edit(text, message):
    with pytest.raises(GroundcrewError, match=message):
        set_version(text)


def test_version_must_be_one():
    with pytest.raises(GroundcrewError, match="must be a whole number"):
        set_version("models: {digits: {version: 3}}", "latest")


NAMES = st.sampled_from(["digits", "digits_tf", "models", "version", "x"])
LEAVES = st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["3", "a: b", "# no", "'"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)
)


@given(
    before=st.dictionaries(NAMES, VALUES, max_size=3),
    entry=st.dictionaries(st.sampled_from(["env", "fleet", "x"]), VALUES, max_size=3),
    old=st.integers(1, 10**6),
    new=st.integers(1, 10**6),
    quoted=st.booleans(),
    flow=st.sampled_from([True, False, None]),
    comments=st.lists(st.sampled_from(["", "# version: 3", "#"]), max_size=3),
)
def test_only_that_value_changes(before, entry, old, new, quoted, flow, comments):
    version: Any = str(old) if quoted else old
    document = {
        **before,
        "models": {"a": {"version": version}, "digits": {"version": version, **entry}},
    }
    text = "\n".join([*comments, yaml.dump(document, default_flow_style=flow, sort_keys=False)])
    edited, was = set_version(text, str(new))
    expected = copy.deepcopy(document)
    expected["models"]["digits"]["version"] = str(new) if quoted else new
    assert yaml.safe_load(edited) == expected
    assert was == str(old)
    assert set_version(edited, str(old))[0] == text
    assert len(edited) - len(text) == len(str(new)) - len(str(old))
