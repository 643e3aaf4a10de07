"""What people, jobs and cron get from the environments, and what happens when somebody or something breaks them.

The tests run in order and each leaves both environments as their locks say.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "molecule/shared"))

import cloud  # noqa: E402

HERE = "/opt/groundcrew/conda"
ENVS = f"{HERE}/envs"
DIGITS, TOOLS = "digits_local", "tools_local"
SITE = "lib/python3.11/site-packages"
BUCKET = "groundcrew-test-store"
CHANNEL = ROOT / "tests/conda_channel"
# As `ansible-playbook playbooks/drift.yml` would have them from an inventory.
INVENTORY = {
    "conda_environments": {n: {"fleets": ["everything"]} for n in (DIGITS, TOOLS)},
    "conda_directory": str(CHANNEL),
    "conda_channels": {"local": "file:///srv/conda_channel"},
    "host_fleets": ["everything"],
}


def converge(*arguments: str, **variables):
    extra = [f"-e={json.dumps(variables)}"] if variables else []
    done = cloud.role("conda_environment", *extra, *arguments)
    return done, " ".join((done.stdout + done.stderr).split())


def current(host, name=DIGITS):
    return host.check_output(f"readlink {ENVS}/{name}")


def drift(host):
    """The reports by environment, as the host's own program has them."""
    found = host.run("groundcrew-conda drift --json")
    assert found.rc in (0, 1), found.stderr
    reports = {report["environment"]: report for report in json.loads(found.stdout)}
    assert found.rc == int(not all(report["ok"] for report in reports.values()))
    return reports


@pytest.fixture(autouse=True)
def _as_locked(host):
    """A test that broke something has to have mended it."""
    yield
    reports = drift(host)
    assert all(report["ok"] for report in reports.values()), reports


def test_real_packages_work_by_in_env(host):
    text = host.check_output(
        f"in-env {DIGITS} python -c 'import sklearn, scipy, numpy, sys; print(sklearn.__version__, sys.prefix)'"
    )
    assert text == f"1.9.1 {ENVS}/{current(host)}"
    refused = host.run("in-env no_such true")
    assert refused.rc == 2
    assert sorted(refused.stderr.split("There are: ")[1].split()[:2]) == [DIGITS, TOOLS]


def test_login_shell_is_in_its_environment(host):
    text = host.check_output(
        "su - -c 'echo $CONDA_DEFAULT_ENV $PYTHONNOUSERSITE; command -v python; echo $CONDA_ENVS_PATH'"
    )
    assert text.splitlines() == [f"{TOOLS} 1", f"{ENVS}/{current(host, TOOLS)}/bin/python", ENVS]


def test_two_environments_do_not_see_each_other(host):
    code = "import importlib.util as u; print([n for n in ('sklearn', 'pandas') if u.find_spec(n)])"
    assert host.check_output(f'in-env {DIGITS} python -c "{code}"') == "['sklearn']"
    assert host.check_output(f'in-env {TOOLS} python -c "{code}"') == "['pandas']"


def test_pip_install_is_refused_with_what_to_do_instead(host):
    for user in ("nobody", "root"):
        done = host.run(
            f"su -s /bin/sh {user} -c 'in-env {DIGITS} python -m pip install six==1.16.0'"
        )
        assert done.rc == 1
        assert (
            "make lock conda=digits_local" in done.stderr and "managed environment" in done.stderr
        )
    written = host.run(f"su -s /bin/sh nobody -c 'touch {ENVS}/{DIGITS}/{SITE}/x'")
    assert written.rc != 0


def test_training_and_batch_jobs_of_the_inventory_run_without_a_container(host):
    """The daily playbooks with jobs in an environment: trained, published and predicted by real packages."""
    store = cloud.client("s3")
    keys = (
        f"AWS_ENDPOINT_URL={cloud.ENDPOINT}\nAWS_ACCESS_KEY_ID=embedded\n"
        "AWS_SECRET_ACCESS_KEY=embedded\nAWS_DEFAULT_REGION=us-east-1\n"
    )
    # The baseline, which writes this, belongs to another scenario.
    host.check_output(f"install -D -m 0600 /dev/stdin /etc/groundcrew/aws.env <<'END'\n{keys}END")
    here = {"conda_environment": DIGITS, "model": "conda_digits", "version": "1"}
    training = {
        "conda_digits": {
            **here,
            "code": "files/example/training",
            "command": ["python", "train.py"],
            "gate": {"metric": "accuracy", "minimum": 0.95},
        }
    }
    batch = {
        "conda_digits": {
            **here,
            "input": "data/digits/holdout.csv",
            "schedule": "30 2 * * *",
        }
    }
    for playbook, jobs in (
        ("train.yml", {"training_jobs": training}),
        ("deploy_batch.yml", {"batch_jobs": batch}),
    ):
        done = cloud.playbook(f"playbooks/{playbook}", "-e", json.dumps(jobs))
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert host.check_output("docker ps -aq 2>/dev/null || true") == ""

    def stored(key):
        return json.loads(store.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    model = stored("models/conda_digits/1/manifest.json")
    assert model["metrics"]["accuracy"] >= 0.95
    assert re.fullmatch("[0-9a-f]{64}", model["environment_fingerprint"]) and not model["image"]
    latest = stored("predictions/conda_digits/LATEST")
    run = stored(f"predictions/conda_digits/{latest['run']}/manifest.json")
    assert run["rows"] == 360 and run["rejected"] == 0


def test_cron_writes_the_metric_that_alerts_read(host):
    entry = host.file("/etc/cron.d/groundcrew-conda").content_string
    (line,) = [line for line in entry.splitlines() if line.startswith("17 * * * *")]
    assert line.startswith("17 * * * * root ")
    host.run("mkdir -p /var/lib/prometheus/node-exporter")
    done = host.run("sh -c %s", line.split(" root ", 1)[1])
    assert done.rc == 0, done.stderr
    text = host.file("/var/lib/prometheus/node-exporter/groundcrew_conda.prom").content_string
    assert 'groundcrew_conda_drift{conda_environment="digits_local"} 0' in text


def test_stray_pip_install_is_named_and_healed_by_the_playbook(host):
    # By force, as somebody in a hurry does it: another six, and a package that nobody knows.
    host.check_output(
        "mkdir -p /tmp/stray/stray && cd /tmp/stray && echo > stray/__init__.py"
        ' && printf \'[project]\\nname = "stray"\\nversion = "0.1"\\n\' > pyproject.toml'
    )
    host.check_output(
        f"chmod -R u+w {ENVS}/{current(host, TOOLS)}/{SITE} && cp -r /tmp/stray/stray {ENVS}/{TOOLS}/{SITE}/"
        f" && mkdir {ENVS}/{TOOLS}/{SITE}/stray-0.1.dist-info"
        f" && printf 'Metadata-Version: 2.1\\nName: stray\\nVersion: 0.1\\n' > {ENVS}/{TOOLS}/{SITE}/stray-0.1.dist-info/METADATA"
        f" && echo pip > {ENVS}/{TOOLS}/{SITE}/stray-0.1.dist-info/INSTALLER"
        f" && mv {ENVS}/{TOOLS}/{SITE}/six-1.17.0.dist-info {ENVS}/{TOOLS}/{SITE}/six-1.16.0.dist-info"
    )
    before = current(host, TOOLS)
    found = cloud.playbook("playbooks/drift.yml", f"-e={json.dumps(INVENTORY)}")
    text = " ".join(found.stdout.split())
    assert found.returncode != 0
    assert "package added: stray 0.1 by pip" in text
    assert "package changed: six 1.17.0 -> 1.16.0 by" in text
    report = json.loads((cloud.BUILD / "drift.json").read_text())
    assert report["ok"] is False
    files = {
        f["path"]: f
        for r in report["hosts"][cloud.HOST]
        for f in r["files"]
        if r["environment"] == TOOLS
    }
    stray = files[f"{SITE}/stray/__init__.py"]
    assert (stray["change"], stray["owner"]) == ("foreign", "root") and stray[
        "modified"
    ].startswith("20")
    assert "heal=yes" in text
    healed = cloud.playbook("playbooks/drift.yml", f"-e={json.dumps(INVENTORY)}", "-e", "heal=yes")
    assert healed.returncode == 0, (healed.stdout + healed.stderr)[-3000:]
    assert json.loads((cloud.BUILD / "drift.json").read_text())["ok"] is True
    assert current(host, TOOLS) != before


def test_edit_of_a_linked_file_reaches_both_and_both_heal(host):
    path = f"{SITE}/numpy/version.py"
    shared = host.check_output(f"stat -c %i {ENVS}/{DIGITS}/{path} {ENVS}/{TOOLS}/{path}").split()
    linked = len(set(shared)) == 1
    host.check_output(f"printf '\\n# edited-in-place\\n' >> {ENVS}/{DIGITS}/{path}")
    reports = drift(host)
    broken = [DIGITS, TOOLS] if linked else [DIGITS]
    assert [n for n in (DIGITS, TOOLS) if not reports[n]["ok"]] == broken
    for name in broken:
        assert [(f["path"], f["change"]) for f in reports[name]["files"]] == [(path, "changed")]
        assert bool(reports[name]["cache"]) == linked
    done, text = converge(conda_environment_heal=True)
    assert done.returncode == 0, text[-3000:]
    assert (
        host.run(
            f"grep -rl '# edited-in-place' {HERE}/cache {ENVS}/{DIGITS}/{path} {ENVS}/{TOOLS}/{path}"
        ).stdout
        == ""
    )


def test_removed_and_foreign_files_are_named(host):
    host.check_output(f"rm {ENVS}/{TOOLS}/{SITE}/six.py && touch {ENVS}/{TOOLS}/left-here")
    text = host.run("groundcrew-conda drift").stdout
    assert f"file removed: {SITE}/six.py of six" in text
    assert "file foreign: left-here, root at 20" in text
    assert host.run(f"groundcrew-conda heal {TOOLS}").rc == 0


def other_lock(tmp_path: Path) -> Path:
    """The same environments, with another six in one of them, as `make lock` after an edit would leave them."""
    for name in (DIGITS, TOOLS):
        for suffix in (".yml", ".lock"):
            text = (CHANNEL / f"{name}{suffix}").read_text()
            if (name, suffix) == (TOOLS, ".lock"):
                old = [line for line in text.splitlines() if " six-1.17.0-" in line]
                legacy = (CHANNEL / "legacy_local.lock").read_text().splitlines()
                new = [line for line in legacy if " six-1.16.0-" in line]
                text = text.replace(old[0], new[0])
            (tmp_path / f"{name}{suffix}").write_text(text)
    return tmp_path


def test_upgrade_and_rollback_leave_a_running_job_alone(host, tmp_path):
    before, untouched = current(host, TOOLS), current(host)
    host.check_output(
        f"systemd-run --unit=job --collect in-env {TOOLS} python -c"
        ' "import time, six; time.sleep(300)"'
    )
    done, text = converge(conda_environment_directory=str(other_lock(tmp_path)))
    assert done.returncode == 0, text[-3000:]
    after = current(host, TOOLS)
    version = f"in-env {TOOLS} python -c 'import six; print(six.__version__)'"
    assert after != before and host.check_output(version) == "1.16.0"
    assert current(host) == untouched
    # The job goes on in the build that it was started in.
    pid = host.check_output("systemctl show job -p MainPID --value")
    assert before in host.check_output(f"tr '\\0' ' ' </proc/{pid}/environ")
    assert host.run(f"groundcrew-conda rollback {TOOLS}").rc == 0
    assert current(host, TOOLS) == before and host.check_output(version) == "1.17.0"
    # Its lock says 1.16.0 still: the check says so, and the old lock, restored, is there at once.
    assert "but the lock of this host is" in host.run("groundcrew-conda drift").stdout
    done, text = converge()
    assert done.returncode == 0 and current(host, TOOLS) == before
    host.check_output("systemctl stop job")


@pytest.fixture
def kept(host):
    """A copy of what a test edits below the root: put back afterwards, whatever happened."""
    host.check_output(
        f"rm -rf /root/kept && mkdir /root/kept && cp -a {HERE}/locks {HERE}/settings.json /root/kept/"
    )
    yield
    host.check_output(f"cp -a /root/kept/. {HERE}/ && groundcrew-conda prune")


def refused(host, *words):
    """Healing tools_local fails with these words, and what was in use stays in use."""
    before = current(host, TOOLS)
    done = host.run(f"groundcrew-conda heal {TOOLS}")
    assert done.rc == 2, done.stdout
    for word in (*words, f"'{TOOLS}' stays at {before}"):
        assert word in done.stderr, done.stderr
    assert current(host, TOOLS) == before
    assert host.run(f"in-env {TOOLS} python -c 'import pandas'").rc == 0


def test_wrong_checksum_is_refused_and_nothing_changes(host, kept):
    lock = f"{HERE}/locks/{TOOLS}.lock"
    right = host.check_output(f"grep -o ' six-.*' {lock}").split(":")[1]
    host.check_output(f"sed -i s/{right}/{'0' * 64}/ {lock}")
    refused(host, "is not the file in the lock", right, "0" * 64)


def test_package_that_is_damaged_in_cache_and_channel_is_refused(host, kept):
    host.check_output("cp -a /srv/conda_channel/noarch /root/noarch")
    host.check_output(
        f"for f in {HERE}/cache/archives/*/six-1.17* /srv/conda_channel/noarch/six-1.17*; do truncate -s 100 $f; done"
    )
    refused(host, "is not the file in the lock")
    host.check_output(
        "rm -rf /srv/conda_channel/noarch && mv /root/noarch /srv/conda_channel/noarch"
    )
    # Healed by the channel: the damaged file in the cache is fetched anew.
    assert host.run(f"groundcrew-conda heal {TOOLS}").rc == 0


def test_another_mirror_reaches_the_host_though_nothing_is_built(host):
    channels = {"local": "file:///srv/conda_channel"}
    done, output = converge(conda_environment_channels={**channels, "spare": "file:///srv/spare"})
    assert done.returncode == 0 and "changed=1 " in output, output[-1500:]
    kept = json.loads(host.check_output(f"cat {HERE}/settings.json"))
    assert kept["channels"]["spare"] == "file:///srv/spare"
    done, output = converge()
    assert done.returncode == 0 and "changed=1 " in output, output[-1500:]


def test_unreachable_channel_says_which_and_what_to_edit(host, kept):
    host.check_output(
        f"rm -r {HERE}/cache/archives/*/six-1.17*; sed -i s,file:///srv/conda_channel,http://127.0.0.1:9, {HERE}/settings.json"
    )
    refused(host, "does not answer at http://127.0.0.1:9/", "conda_channels")


def test_full_disk_says_so_and_leaves_nothing_half_built(host):
    host.check_output(
        "mkdir -p /mnt/small && mount -t tmpfs -o size=60m tmpfs /mnt/small && mkdir /mnt/small/conda"
        f" && cp -a {HERE}/locks {HERE}/settings.json /mnt/small/conda/ && ln -s {HERE}/tools /mnt/small/conda/tools"
    )
    done = host.run(f"groundcrew-conda --root /mnt/small/conda heal {TOOLS}")
    assert done.rc == 2 and "No space is left" in done.stderr and "Make room" in done.stderr, (
        done.stderr
    )
    assert host.run("ls -d /mnt/small/conda/envs/*/conda-meta").rc != 0
    host.check_output("umount /mnt/small")


def test_spec_that_cannot_be_solved_shows_the_solvers_own_words(tmp_path):
    (tmp_path / "wrong.yml").write_text(
        "channels: [local]\ndependencies: [python=3.11, numpy=2.4.6, six=9.9]\n"
    )
    variables = {
        "conda_directory": str(tmp_path),
        "conda_channels": {"local": str(ROOT / ".cache/conda_channel")},
    }
    done = cloud.playbook(
        "playbooks/lock.yml", f"-e={json.dumps({**variables, 'conda_platforms': ['linux-64']})}"
    )
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "No lock was changed" in text and "six 9.9" in text
    assert not (tmp_path / "wrong.lock").exists()


def test_edited_spec_and_missing_lock_are_refused_before_anything_is_changed(host, tmp_path):
    directory = other_lock(tmp_path)
    (directory / f"{TOOLS}.yml").write_text((directory / f"{TOOLS}.yml").read_text() + "  - idna\n")
    (directory / f"{DIGITS}.lock").unlink()
    done, text = converge(conda_environment_directory=str(directory))
    assert done.returncode != 0 and "changed=0" in text
    assert f"{DIGITS}.lock is missing. Make it with: make lock conda={DIGITS}" in text
    assert f"was edited after its lock was made. Run: make lock conda={TOOLS}" in text


def test_killed_while_linking_is_never_used_and_is_mended(host):
    before = current(host)
    host.check_output(
        f"n=$(ls -d {ENVS}/{DIGITS}-*/lib | wc -l); systemd-run --unit=half --collect groundcrew-conda heal {DIGITS};"
        f" for i in $(seq 500); do [ $(ls -d {ENVS}/{DIGITS}-*/lib | wc -l) -gt $n ] && break; sleep 0.02; done;"
        " systemctl kill --signal=KILL half"
    )
    assert current(host) == before and host.run(f"in-env {DIGITS} python -c 'import numpy'").rc == 0
    assert host.run(f"groundcrew-conda heal {DIGITS}").rc == 0
    builds = host.check_output(f"ls -d {ENVS}/{DIGITS}-*").split()
    records = [host.file(f"{HERE}/records/{build.rsplit('/')[-1]}.json").exists for build in builds]
    assert all(records), builds


def test_another_interpreter_beside_and_gone_again(host):
    host.check_output(
        "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends pypy3 >/dev/null"
    )
    names = [DIGITS, TOOLS, "legacy_local"]
    done, text = converge(conda_environment_names=names)
    assert done.returncode == 0, text[-3000:]
    code = "import sys, six; print(sys.implementation.name, sys.version_info[:2], six.__version__)"
    assert host.check_output(f'in-env legacy_local python -c "{code}"') == "pypy (3, 9) 1.16.0"
    assert host.run(f"in-env {DIGITS} python -c 'import sklearn'").rc == 0
    done, text = converge()
    assert done.returncode == 0 and not host.file(f"{ENVS}/legacy_local").exists
    assert host.run(f"ls -d {ENVS}/legacy_local-*").rc != 0


def test_a_person_has_the_same_environment_without_root(host, tmp_path):
    """playbooks/workstation.yml as an ordinary user, and the comparison of both."""
    host.check_output(
        "id ada || useradd --create-home --shell /bin/bash ada; install -d -m 0700 -o ada /home/ada/.ssh;"
        " install -m 0600 -o ada /home/groundcrew/.ssh/authorized_keys /home/ada/.ssh/authorized_keys"
    )
    (tmp_path / "people.yml").write_text(
        json.dumps(
            {
                "test_workstation": {
                    "hosts": {
                        "ada-laptop": {
                            "environment_name": "test",
                            "ansible_host": cloud.ADDRESS,
                            "ansible_user": "ada",
                            "ansible_ssh_private_key_file": str(cloud.BUILD / "ssh/deploy_key"),
                            "ansible_ssh_common_args": f"-o UserKnownHostsFile={cloud.BUILD}/ssh/known_hosts"
                            f" -o HostKeyAlias={cloud.HOST} -o IdentitiesOnly=yes",
                            "conda_environment_names": [DIGITS],
                        }
                    }
                },
                "workstation": {"children": {"test_workstation": {}}},
            }
        )
    )
    shared = [
        f"--inventory={tmp_path}/people.yml",
        f"-e={json.dumps({k: v for k, v in INVENTORY.items() if k != 'host_fleets'})}",
    ]
    done = cloud.playbook("playbooks/workstation.yml", *shared, "-l", "test_workstation")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    again = cloud.playbook("playbooks/workstation.yml", *shared, "-l", "test_workstation")
    assert "changed=0" in again.stdout
    mine = "/home/ada/.local/share/groundcrew/conda"
    assert host.check_output(
        f"su - ada -c '~/.local/bin/in-env {DIGITS} python -c \"import sys; print(sys.prefix)\"'"
    ).startswith(mine)
    assert host.file(f"{mine}/envs").user == "ada"
    compared = cloud.playbook("playbooks/fleet_diff.yml", *shared)
    text = " ".join(compared.stdout.split())
    assert compared.returncode == 0 and f"conda environment {DIGITS}: 2 hosts are the same" in text
    # Ada may lift the protection of what is hers: then the comparison names her machine and the file's environment.
    host.check_output(
        f"su - ada -c 'chmod u+w {mine}/envs/{DIGITS}/{SITE}/six.py && echo >> {mine}/envs/{DIGITS}/{SITE}/six.py'"
    )
    compared = cloud.playbook("playbooks/fleet_diff.yml", *shared)
    text = " ".join(compared.stdout.split())
    assert compared.returncode != 0 and f"conda environment {DIGITS}: 1 differences" in text
    assert (
        "ada-laptop" in text
        and json.loads((cloud.BUILD / "fleet_diff.json").read_text())["ok"] is False
    )
    healed = cloud.playbook(
        "playbooks/drift.yml", *shared, "-l", "test_workstation", "-e", "heal=yes"
    )
    assert healed.returncode == 0, (healed.stdout + healed.stderr)[-3000:]
