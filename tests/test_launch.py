"""The scripts of `launch/`, as far as they go without a cluster: what they would start parses."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from alexnet_jax.cli.arguments import parse
from alexnet_jax.cli.main import VERBS
from alexnet_jax.config import validate

LAUNCH = Path(__file__).parent.parent / "launch"
EXTRA = ["--config.batch_size=1024", "--config.data.source=folder:/a b"]


def check(command, *extra):
    """`... python -m alexnet_jax train FLAGS` is a run that would start."""
    start = command.index("alexnet_jax")
    assert command[start - 2].endswith("python") and command[start - 1] == "-m"
    assert command[start + 1] == "train"
    flag = parse("train", VERBS["train"][1], command[start + 2 :])
    validate(flag.config)
    assert flag.config.distributed.enabled and flag.config.batch_size == 1024
    assert flag.workdir.endswith("runs/a")
    for argument in extra:
        assert argument in command


def run(script, *arguments, path=None, **env):
    env = os.environ | env | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    return subprocess.run(
        [LAUNCH / script, *arguments], env=env, capture_output=True, text=True, check=True
    ).stdout


def test_slurm_starts_one_training_process_a_task(tmp_path):
    srun = tmp_path / "srun"
    srun.write_text("#!/usr/bin/env bash\nprintf '%q ' \"$@\"\n")
    srun.chmod(0o755)
    out = run("slurm.sh", "experiments/imagenet.py:source", "runs/a", *EXTRA, path=tmp_path)
    check(shlex.split(out), *EXTRA)


def test_tpu_starts_one_training_process_a_host():
    out = run("tpu.sh", "name", "zone", "experiments/imagenet.py", "runs/a", *EXTRA, DRY_RUN="1")
    command = shlex.split(out)
    assert command[0] == "gcloud" and "--worker=all" in command
    (remote,) = (word for word in command if word.startswith("--command="))
    check(shlex.split(remote.removeprefix("--command=")), *EXTRA)


def test_the_page_starts_a_slice_with_a_command_that_parses():
    page = (LAUNCH.parent / "docs" / "placements.md").read_text()
    (typed,) = re.findall(r"^launch/(tpu\.sh (?:.*\\\n)*.*)", page, re.M)
    typed = typed.replace("\\\n", "").replace("/mnt/shared/runs/source", "runs/a")
    script, *arguments = shlex.split(typed)
    command = shlex.split(run(script, *arguments, DRY_RUN="1"))
    (remote,) = (word for word in command if word.startswith("--command="))
    check(shlex.split(remote.removeprefix("--command=")))


@pytest.fixture
def parts():
    documents = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return {part["kind"]: part for part in documents}


def test_kubernetes_starts_one_training_process_a_pod(parts):
    pod = parts["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = [a.replace("/data/runs/source", "/data/runs/a") for a in container["args"]]
    check(container["command"] + arguments)


def test_kubernetes_tells_jax_what_it_asks_for(parts):
    """What `jax.distributed` reads of a cluster: an indexed job, its pods by name, the right to."""
    job, service = parts["Job"]["spec"], parts["Service"]
    pod = job["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": parts["Job"]["metadata"]["name"]}
    assert service["spec"]["clusterIP"] == "None"
    rules = {(g, r): rule["verbs"] for rule in parts["Role"]["rules"]
             for g in rule["apiGroups"] for r in rule["resources"]}  # fmt: skip
    assert {"get", "list"} <= set(rules["", "pods"]) & set(rules["batch", "jobs"])
    assert "list" in rules["", "services"]
    (subject,) = parts["RoleBinding"]["subjects"]
    account = parts["ServiceAccount"]["metadata"]["name"]
    assert subject["name"] == account == pod["serviceAccountName"]
    assert parts["RoleBinding"]["roleRef"]["name"] == parts["Role"]["metadata"]["name"]
    claims = {v["name"] for v in pod["volumes"]}
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == claims
