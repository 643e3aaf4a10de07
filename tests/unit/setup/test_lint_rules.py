"""The rules of tests/lint, as ansible-lint finds them by the repository's .ansible-lint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TASK = """
- name: Call the module
  amazon.aws.ec2_instance:
    name: prod-prediction-2
    filters: {{"tag:Name": prod-prediction-2, instance-state-name: [running]}}
    {}
"""
PLAY = """
- name: Play
  hosts: localhost
  gather_facts: false
  module_defaults:
    amazon.aws.ec2_instance: {exact_count: 1}
  tasks:
    - name: Call the module
      amazon.aws.ec2_instance:
        name: prod-prediction-2
"""
# file -> its content and what the rule has to find there
FILES: dict[str, tuple[str, list[str]]] = {
    "playbooks/tasks/terminate.yml": (TASK.format("state: absent"), []),
    "playbooks/tasks/count.yml": (TASK.format("exact_count: 1"), ["exact-count"]),
    "playbooks/tasks/absent.yml": (TASK.format("state: absent"), ["state"]),
    "playbooks/tasks/terminated.yml": (TASK.format("state: terminated"), ["state"]),
    "playbooks/tasks/both.yml": (
        TASK.format("state: absent\n    exact_count: 0"),
        ["exact-count", "state"],
    ),
    "playbooks/tasks/expression.yml": (
        TASK.format("state: \"{{ 'absent' if gone else 'present' }}\""),
        ["state"],
    ),
    "playbooks/tasks/loop.yml": (
        TASK.format('state: "{{ item }}"\n  loop: [present, absent]'),
        ["state"],
    ),
    "playbooks/tasks/stop.yml": (TASK.format("state: stopped"), []),
    "playbooks/tasks/block.yml": (
        "- name: Block\n  block:" + TASK.format("exact_count: 2").replace("\n", "\n    "),
        ["exact-count"],
    ),
    "playbooks/tasks/other_module.yml": (
        "- name: Call another\n  amazon.aws.ec2_vol:\n    id: vol-1\n    state: absent\n",
        [],
    ),
    "playbooks/tasks/no_name.yml": ("- ansible.builtin.meta: noop\n", []),
    "playbooks/defaults.yml": (PLAY, ["exact-count"]),
    # The right way: one call a host, as the repository does it.
    "roles/ec2_fleet/tasks/launch.yml": (
        (ROOT / "roles/ec2_fleet/tasks/launch.yml").read_text(),
        [],
    ),
}


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """file -> (tag, message) of what was found there."""
    folder = tmp_path_factory.mktemp("repository")
    for name, (text, _) in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("---" + text if text.startswith("\n") else text)
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-lint"),
            f"--config-file={ROOT}/.ansible-lint",
            f"--project-dir={folder}",
            "--offline",
            "--nocolor",
            "--format=json",
            *FILES,
        ],
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in FILES}
    for entry in json.loads(done.stdout):
        found[entry["location"]["path"]].append((entry["check_name"], entry["description"]))
    return found


def ours(findings: dict[str, list[tuple[str, str]]], name: str) -> dict[str, str]:
    """tag -> message of what our rule found in a file."""
    return {tag: message for tag, message in findings[name] if tag.startswith("ec2-termination")}


@pytest.mark.parametrize("name", FILES)
def test_ec2_termination(findings: dict[str, list[tuple[str, str]]], name: str) -> None:
    assert sorted(ours(findings, name)) == [f"ec2-termination[{tag}]" for tag in FILES[name][1]]


def test_messages_say_what_to_do_instead(findings: dict[str, list[tuple[str, str]]]) -> None:
    (count,) = ours(findings, "playbooks/tasks/count.yml").values()
    assert (
        "terminates" in count and "one call for each host" in count and "tag:Environment" in count
    )
    (state,) = ours(findings, "playbooks/tasks/absent.yml").values()
    assert "only playbooks/tasks/terminate.yml may" in state


def test_the_default_rules_are_there_too(findings: dict[str, list[tuple[str, str]]]) -> None:
    assert "name[missing]" in dict(findings["playbooks/tasks/no_name.yml"])
