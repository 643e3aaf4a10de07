"""What drills are given: an environment under load, playbooks, hosts, checks and figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins/module_utils"))
from groundcrew.load import Load, Sample, body_of, figures

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = "playbooks/deploy_prediction.yml"


@dataclass
class Drill:
    """What a drill is given: an environment under load."""

    environment: str
    model: str
    rate: float
    short: bool

    def __post_init__(self) -> None:
        self.build = ROOT / "build" / self.environment
        self.access = json.loads((self.build / "access.json").read_text())
        # The tests' environment is no file, but one that ships under other names.
        test = [
            f"--inventory={ROOT}/inventories/shared",
            f"--inventory={ROOT}/molecule/shared/test_inventory.py",
        ]
        self._inventory = test if self.environment == "test" else []
        self._environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "GROUNDCREW_ROOT": str(ROOT),
        }
        self.checks: list[dict[str, Any]] = []
        self.figures: dict[str, Any] = {}
        some_host = min(self.access["hosts"])
        said = self._ansible("ansible-inventory", "--host", some_host).stdout
        self.models = json.loads(said)["models"]

    def load(self) -> Load:
        request = json.loads((self.build / "request.json").read_text())
        return Load(
            url=f"{self.access['gateway_url']}/v1/models/{self.model}:predict",
            # Client `bench` has no limit, where there is one.
            headers={
                "X-Api-Key": self.access["bench_api_key"] or self.access["api_key"],
                "Content-Type": "application/json",
            },
            body=body_of(request),
            ca_file=self.access["ca_file"],
            rate=self.rate,
        ).start()

    def check(self, name: str, ok: bool, detail: Any) -> None:
        self.checks.append({"name": name, "ok": bool(ok), "detail": str(detail)})

    def changed_models(self, **keys: Any) -> str:
        """Arguments that make the model's next release differ from the last."""
        models = {**self.models, self.model: {**self.models[self.model], **keys}}
        return json.dumps({"models": models})

    def start(
        self, *arguments: str, playbook: str = PLAYBOOK, limit: str = "", **environment: str
    ) -> subprocess.Popen[str]:
        command = [
            str(ROOT / ".venv/bin/ansible-playbook"),
            *self._inventory,
            playbook,
            "-l",
            limit or self.environment,
            *arguments,
        ]
        # The controller is another machine than the fleet; where it is the same one, it must not take the fleet's processors.
        return subprocess.Popen(
            ["nice", "-n", "15", *command],
            cwd=ROOT,
            env=self._environment | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def release(
        self, *arguments: str, playbook: str = PLAYBOOK, limit: str = ""
    ) -> tuple[int, str]:
        process = self.start(*arguments, playbook=playbook, limit=limit)
        output, _ = process.communicate(timeout=900)
        return process.returncode, output

    def restore(self) -> None:
        """As the inventory says."""
        status, output = self.release()
        self.check(
            "the inventory's own release is deployed again",
            status == 0,
            output[-2000:] if status else "yes",
        )

    def on(self, host: str, command: str) -> str:
        """A shell command on a host, as root."""
        done = self._ansible(
            "ansible", host, "--become", "--module-name=ansible.builtin.shell", f"--args={command}"
        )
        if done.returncode != 0:
            raise SystemExit(f"{host}: {command}: {done.stdout}{done.stderr}")
        return done.stdout

    def cloud(self, service: str) -> Any:
        """A client of the stand-in, which asks for no real credentials."""
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.access["aws_endpoint_url"],
            region_name=self.access["region"],
            aws_access_key_id="embedded",
            aws_secret_access_key="embedded",
        )

    def secret(self, name: str) -> dict[str, str]:
        """From the environment's secret store."""
        value = self.cloud("secretsmanager").get_secret_value(
            SecretId=f"groundcrew/{self.environment}/{name}"
        )
        return dict(json.loads(value["SecretString"]))

    def hosts(self, fleet: str) -> list[str]:
        return sorted(
            name for name in self.access["hosts"] if name.startswith(f"{self.environment}-{fleet}-")
        ) or sorted(self.access["hosts"])

    def _ansible(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / ".venv/bin" / program), *self._inventory, *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False
        )

    def none_failed(self, samples: list[Sample]) -> None:
        """Also the drill's figures, where it has none of its own."""
        found = figures(samples)
        self.figures = self.figures or found
        self.check("no request failed", found["failed"] == 0, found)


def settle(seconds: float) -> None:
    """A steady load, for what is compared with."""
    time.sleep(seconds)


def docker(*arguments: str) -> str:
    done = subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout
