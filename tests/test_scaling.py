"""The recipes of docs/scaling.md, read as far as that can be done without the cluster they are for."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cli, presets, train
from experiments.measuring import scaling
from tinygpt_jax.config import Config
from tinygpt_jax.distributed.place import Place, find_place
from tinygpt_jax.estimate.estimation import Estimate
from tinygpt_jax.estimate.roofline import Part, Sent
from tinygpt_jax.runs.checkpoint_files import checkpoints

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SCRIPTS = [text for language, text in BLOCKS if language == "bash"]
SBATCH = next((text for text in SCRIPTS if "#SBATCH" in text), "")
HERE = next((text for text in SCRIPTS if "localhost" in text), "")
MPIRUN = next((text for text in SCRIPTS if text.startswith("mpirun")), "")


def test_every_script_is_one_to_bash():
    assert len(SCRIPTS) == 4
    for script in SCRIPTS:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, script


def test_a_job_leaves_time_to_save_and_asks_for_one_process_a_machine():
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", SBATCH, re.MULTILINE))
    assert SBATCH.startswith("#!/bin/bash\n") and len(asked) == SBATCH.count("#SBATCH")
    assert asked.keys() <= set("job-name nodes ntasks-per-node gpus-per-node cpus-per-task time signal".split())
    assert asked["ntasks-per-node"] == "1" and re.fullmatch(r"TERM@\d{3}", asked["signal"])
    assert re.search(r"^srun .*\\$", SBATCH, re.MULTILINE)
    # Directives behind the first command are not read.
    assert SBATCH.rindex("#SBATCH") < SBATCH.index("\nexport")


# Fields of JobSet v1alpha2 (kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go) and of Kubernetes' batch/v1
# and core/v1 as far as a recipe may need them. `!`: it must be there. A list's entries are those of its `[]`.
FIELDS = {
    "": "apiVersion! kind! metadata! spec!",
    "metadata": "name! namespace labels annotations",
    "spec": "replicatedJobs! network successPolicy failurePolicy suspend ttlSecondsAfterFinished",
    "spec.failurePolicy": "maxRestarts rules restartStrategy",
    "spec.replicatedJobs[]": "name! replicas groupName dependsOn template!",
    "spec.replicatedJobs[].template": "metadata spec!",
    "spec.replicatedJobs[].template.spec": "parallelism! completions! completionMode! backoffLimit template! suspend "
    "activeDeadlineSeconds podFailurePolicy backoffLimitPerIndex maxFailedIndexes ttlSecondsAfterFinished",
    "POD": "metadata spec!",
    "POD.spec": "containers! initContainers volumes! restartPolicy! terminationGracePeriodSeconds nodeSelector "
    "tolerations affinity hostNetwork dnsPolicy securityContext imagePullSecrets",
    "POD.spec.containers[]": "name! image! command args workingDir env ports resources! volumeMounts! securityContext",
    "POD.spec.containers[].env[]": "name! value valueFrom",
    "POD.spec.containers[].resources": "limits! requests",
    "POD.spec.containers[].resources.limits": "nvidia.com/gpu! cpu memory",
    "POD.spec.containers[].volumeMounts[]": "name! mountPath! readOnly subPath",
    "POD.spec.volumes[]": "name! persistentVolumeClaim emptyDir nfs hostPath",
    "POD.spec.volumes[].persistentVolumeClaim": "claimName! readOnly",
    "POD.spec.volumes[].emptyDir": "medium sizeLimit",
}


def problems(node, path=""):
    """What of a document no field of `FIELDS` allows, and what is missing."""
    if isinstance(node, list):
        return [problem for entry in node for problem in problems(entry, f"{path}[]")]
    if not isinstance(node, dict):
        return []
    key = path.replace("spec.replicatedJobs[].template.spec.template", "POD")
    fields = FIELDS[key].split()
    known = {field.rstrip("!") for field in fields}
    found = [f"{path}: no field {name}" for name in node if name not in known]
    found += [f"{path}: {field[:-1]} is missing" for field in fields if field.endswith("!") and field[:-1] not in node]
    inner = (problems(value, f"{path}.{name}".lstrip(".")) for name, value in node.items() if name in known)
    return found + [problem for each in inner for problem in each]


@pytest.fixture
def jobset():
    yaml = pytest.importorskip("yaml", reason="reading the JobSet needs PyYAML")
    return yaml.safe_load(next(text for language, text in BLOCKS if language == "yaml"))


def test_the_jobset_has_the_fields_that_there_are(jobset):
    assert problems(jobset) == []
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
    assert pod["restartPolicy"] in ("Never", "OnFailure")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    words = [*container["command"], *container["args"], *(entry["value"] for entry in container["env"])]
    assert all(isinstance(word, str) for word in words)  # Kubernetes takes no numbers here
    assert {"name": "JAX_NUM_PROCESSES", "value": str(job["completions"])} in container["env"]
    workdir = container["args"][container["args"].index("--workdir") + 1]
    assert any(workdir.startswith(f"{mount['mountPath']}/") for mount in container["volumeMounts"])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda job: job.pop("template"), "template.spec: template is missing"),
        (lambda job: job.update(completion=4), "template.spec: no field completion"),
        (lambda job: job["template"]["spec"]["containers"][0].pop("image"), "containers[]: image is missing"),
    ],
)
def test_a_field_that_is_wrong_or_missing_is_found(jobset, spoil, said):
    spoil(jobset["spec"]["replicatedJobs"][0]["template"]["spec"])
    (problem,) = problems(jobset)
    assert problem.endswith(said)


def test_mpirun_starts_one_process_on_each_machine_and_names_the_first():
    hosts = re.findall(r"--host (\S+)", MPIRUN)[0].split(",")
    assert "--map-by ppr:1:node" in MPIRUN and f"--coordinator {hosts[0]}:" in MPIRUN


def train_flags(script):
    """Of each training command in a script, with continued lines joined."""
    lines = script.replace("\\\n", " ").splitlines()
    return [shlex.split(line.rstrip("& ").split("experiments.train", 1)[1]) for line in lines if ".train " in line]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_flags_are_those_of_training_and_the_batch_divides(script):
    commands = train_flags(script)
    assert commands
    for flags in commands:
        start = cli.parse(train.Start, flags, others=True)
        config = train.with_config(train.Arguments, flags, start, presets.get(start.preset).config).config
        assert config.training.batch_size % (4 * 8) == 0 or "localhost" in script
        if start.process_id is not None:
            assert find_place(start.coordinator, start.num_processes, start.process_id, {}) == Place(
                start.process_id, len(commands), start.coordinator
            )


def test_the_two_processes_on_one_machine_are_really_started(tmp_path):
    """The recipe to the letter, for a smaller model, and a port that is free here."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        port = one.getsockname()[1]
    small = "--n-layers 1 --d-model 32 --n-heads 2 --d-ff 64 --builtin-stories 300 --steps 2 --eval-batches 1"
    script = re.sub(r"(--process-id \d)", rf"\1 {small}", HERE.replace("55527", str(port)))
    script = script.replace("python -m", f"{shlex.quote(sys.executable)} -m")
    environment = {**os.environ, "TINYGPT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    environment |= {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        ["bash", "-e"], input=script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training together: ") == 1, done.stdout  # one of them speaks
    assert [saved.step for saved in checkpoints(tmp_path / "runs" / "two")][-1] == 2
    assert (tmp_path / "runs" / "two" / "report.html").is_file()


def test_the_rows_of_the_tables(monkeypatch, capsys):
    """As if a device took 70 GiB but for rematerialisation, computed for 0.3 s and waited for 0.1."""
    seen = []

    def estimated(request):
        seen.append(request)
        most = 40 if Config.from_json(request.config).training.remat else 70
        sent = {"all-reduce": Sent(3, 2e9, 1e9, 0.2)}
        return Estimate(2**30, most * 2**30, {"all": Part(1, 1.0, 1.0, 0.3)}, sent, 0.1, 1.0)

    monkeypatch.setattr(scaling, "estimate", estimated)
    scaling.main(["--sizes", "7B", "--devices", "1", "64"])
    head, _, one, many = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    )
    assert one == ["7B", "1", "data=1,fsdp=1", "8,192", "74.4", "does not fit", *[""] * 8]
    assert dict(zip(head, many, strict=True)) == {
        "model": "7B",
        "devices": "64",
        "mesh": "data=8,fsdp=8, remat",
        "tokens an update": "524,288",
        "held GiB": "1.0",
        "at most GiB": "40.0",
        "all-reduce GB": "2.00",
        "all-gather GB": "0.00",
        "reduce-scatter GB": "0.00",
        "to other machines GB": "1.00",
        "computing ms": "300",
        "exchanging ms": "200",
        "waiting ms": "100",
        "efficiency": "75%",
    }
    assert [(request.devices, request.mesh) for request in seen] == [(64, "data=8,fsdp=8")] * 2
    assert f"| {' | '.join(head)} |" in TEXT  # the document has these tables
