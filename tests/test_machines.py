"""Several machines: two launchers with a rank each are one launcher with two; what does not fit ends in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, STEP3, Workshop, free_port, read_metrics, read_weights, untimed
from utils.process.distributed import check_local_ranks
from utils.process.errors import UserError

pytestmark = pytest.mark.slow

CHANGES = {"zero_stage": 2, "max_steps": 2, "gradient_accumulation_steps": 2}


def start(script: str, log: Path, arguments: list[str], **variables: object) -> subprocess.Popen:
    """`launch` of utils/launch/launch.sh, as the training scripts call it."""
    command = f'source utils/launch/launch.sh; launch {script} {log} "$@"'
    environment = os.environ | {"PYTHON": sys.executable} | {key: str(value) for key, value in variables.items()}
    return subprocess.Popen(
        ["bash", "-c", command, "utils/launch/launch.sh", *arguments],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_two_launchers_with_one_rank_each_end_in_the_weights_of_one_with_two(workshop: Workshop) -> None:
    arguments, log = workshop.step3_flags("nodes", **CHANGES), workshop.folder / "logs/nodes.log"
    address = {"RANKS": 1, "NNODES": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    nodes = [start(STEP3, log, arguments, **address, NODE_RANK=node) for node in (0, 1)]
    said = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    nodes_output, output = workshop.folder / "nodes", workshop.step3("one_node", ranks=2, **CHANGES)
    first, second = read_weights(nodes_output), read_weights(output)
    assert all((first[name] == second[name]).all() for name in second) and first.keys() == second.keys()
    assert untimed(read_metrics(nodes_output)) == untimed(read_metrics(output))
    assert not any(
        (first[name] == weight).all() for name, weight in read_weights(workshop.base).items() if "proj" in name
    )
    assert (said[0].count("policy saved in"), said[1].count("policy saved in")) == (1, 0)
    logs = sorted(file.name for file in (workshop.folder / "logs").glob("nodes*"))
    assert logs == ["nodes.log", "nodes.node1.log"] and not (nodes_output / ".ranks").exists()


BAD = {
    "no address": ({"NNODES": "2", "NODE_RANK": "0"}, "MASTER_ADDR: needed with NNODES=2"),
    "no node rank": ({"NNODES": "2", "MASTER_ADDR": "127.0.0.1"}, "NODE_RANK: needed with NNODES=2"),
    "node rank too large": (
        {"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "127.0.0.1"},
        "NODE_RANK=2: the nodes are 0 to 1 with NNODES=2",
    ),
    "no whole number": ({"NNODES": "two"}, "NNODES=two: not a whole number from 1 on"),
    "no host file": ({"HOSTFILE": "/nowhere/hosts"}, "HOSTFILE=/nowhere/hosts: no such file"),
    "node rank alone": ({"NODE_RANK": "1"}, "NODE_RANK=1: needs NNODES, the number of machines"),
    "no port": ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999: ports end at 65535"),
    "two kinds": ({"HOSTFILE": "README.md", "NNODES": "2"}, "NNODES, NODE_RANK: HOSTFILE names the machines"),
    "host without slots": ({"HOSTFILE": "a slots=2 # fast\nb"}, 'HOSTFILE=HOSTS:2: not of the form "NAME slots=N"'),
    "host twice": ({"HOSTFILE": "a slots=2\n a slots=1\n"}, "HOSTFILE=HOSTS: a is there twice"),
    "no host": ({"HOSTFILE": "# none\n"}, 'HOSTFILE=HOSTS: no line "NAME slots=N"'),
    "fewer slots than ranks": (
        {"HOSTFILE": "a slots=8\nb slots=4", "RANKS": "8"},
        "RANKS=8: more than the slots of b in HOSTFILE=HOSTS (4)",
    ),
    "more slots than GPUs": (
        {"HOSTFILE": "a slots=2\nb slots=8", "GPUS": "4", "DRY_RUN": "1"},
        "RANKS=8: more ranks than GPUs (4) on a machine",
    ),
    "no switch": ({"DRY_RUN": "yes"}, "DRY_RUN=yes: neither true (1) nor false (0)"),
    "no memory": ({"GPU_MEMORY": "0.0"}, "GPU_MEMORY=0.0: not a number above 0"),
    "more ranks than GPUs": ({"RANKS": "4", "GPUS": "2"}, "RANKS=4: more ranks than GPUs (2) on a machine"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_machines_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    variables, line = BAD[case]
    if "\n" in variables.get("HOSTFILE", ""):  # its lines
        hosts = tmp_path_factory.mktemp("hosts") / "hosts"
        hosts.write_text(variables["HOSTFILE"])
        variables, line = variables | {"HOSTFILE": str(hosts)}, line.replace("HOSTS", str(hosts))
    script = f"source utils/launch/launch.sh; launch {STEP3} {tmp_path}/logs/x.log; echo not reached"
    environment = os.environ | {"PYTHON": sys.executable} | variables
    result = subprocess.run(
        ["bash", "-c", script, "utils/launch/launch.sh"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr, result.stdout) == (2, f"error: {line}\n", "")
    assert not list(tmp_path.iterdir())


ECHO = '#!/usr/bin/env bash\ncase $1 in - | -c) exec "$REAL_PYTHON" "$@" ;; esac\necho "$*"\n'


@pytest.fixture
def command_of(tmp_path: Path):
    """`command_of(script, **variables)`: the line that a training script would run, on a machine with eight GPUs."""
    for name, content in (
        ("python", ECHO),
        ("nvidia-smi", "#!/bin/sh\nfor i in 0 1 2 3 4 5 6 7; do echo GPU $i; done"),
    ):
        (tmp_path / name).write_text(content + "\n")
        (tmp_path / name).chmod(0o755)

    def run(script: str, **variables: str) -> str:
        environment = os.environ | {
            "PYTHON": str(tmp_path / "python"), "REAL_PYTHON": sys.executable, "OUTPUT": str(tmp_path / "out"),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        } | variables  # fmt: skip
        words = ["bash", *script.split()]
        result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        return next(line for line in (result.stdout + result.stderr).splitlines() if "/main.py" in line)

    return run


POLICY = "step3_gapo/training_scripts/tiny_policy.sh gapo_p1"


@pytest.mark.parametrize("script", [POLICY, "step1_sft/training_scripts/tiny.sh"])
def test_the_slots_of_a_host_file_are_the_ranks(command_of, tmp_path: Path, script: str) -> None:
    (tmp_path / "hosts").write_text("a slots=4\nb slots=2\n")
    command = command_of(script, HOSTFILE=str(tmp_path / "hosts"), DRY_RUN="1")
    assert "--plan_ranks 6 --plan_devices 6 --plan_machines 2" in command
    command = command_of(script, HOSTFILE=str(tmp_path / "hosts"), RANKS="2", DRY_RUN="true", HOST_MEMORY="512")
    assert "--plan_ranks 4 --plan_devices 6 --plan_machines 2 --plan_host_memory 512" in command


def test_ranks_take_the_gpus_that_are_named(command_of) -> None:
    assert " --include localhost:4,5 " in command_of(POLICY, CUDA_VISIBLE_DEVICES="4,5,6", RANKS="2")
    assert "--plan_devices 3" in command_of(POLICY, CUDA_VISIBLE_DEVICES="4,5,6", RANKS="2", DRY_RUN="1")
    node = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "10.0.0.1"}
    assert command_of(POLICY, CUDA_VISIBLE_DEVICES="7,2", RANKS="2", **node).count("--include node0:7,2@node1:7,2") == 1
    environment = {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2", "RANKS": "2"}
    with pytest.raises(StopIteration):  # nothing is started
        command_of(POLICY, **environment)


# Stand-ins for pdsh and ssh: every "machine" is this one.
PDSH = r"""#!/usr/bin/env bash
hosts= node=0 codes=0
while [ $# -gt 0 ]; do case $1 in -S) shift ;; -f) shift 2 ;; -w) hosts=$2; shift 2 ;; *) break ;; esac; done
for host in ${hosts//,/ }; do bash -c "${*//%n/$node}" 2>&1 | sed "s/^/$host: /" & node=$((node + 1)); done
wait
"""


SSH = '#!/bin/sh\ncase "$*" in *lost*) exit 255; esac\n'
RANK = """
import os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "CROSS_RANK", "MASTER_PORT", "OMP_NUM_THREADS", "HF_HUB_OFFLINE")
os.write(1, f"is {' '.join(os.environ[name] for name in names)} {sys.argv[2:]}\\n".encode())  # all at once
"""


def test_a_host_file_starts_a_launcher_on_every_machine(tmp_path: Path) -> None:
    for name, content in (("pdsh", PDSH), ("ssh", SSH), ("rank.py", RANK)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "hosts").write_text("# two machines\nleft slots=1\nright slots=2\n")
    variables = {"HOSTFILE": tmp_path / "hosts", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29876, "THREADS": 3}
    path = f"{tmp_path}:{os.environ['PATH']}"
    run = start(f"{tmp_path}/rank.py", tmp_path / "log", ["--a", "b c"], **variables, PATH=path)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    ranks = sorted(line for line in said.splitlines() if ": is " in line)
    assert ranks == [
        "left: is 0 0 3 0 29876 3 1 ['--a', 'b c']",
        "right: is 1 1 3 1 29876 3 1 ['--a', 'b c']",
        "right: is 2 0 3 1 29876 3 1 ['--a', 'b c']",
    ]
    (tmp_path / "hosts").write_text("left slots=1\nlost slots=2\n")
    said, _ = start("rank.py", tmp_path / "x/log", [], **variables, PATH=path).communicate(timeout=20)
    assert said == f"error: HOSTFILE={tmp_path}/hosts: ssh does not reach lost without a password\n"


SRUN = r"""#!/usr/bin/env bash
if [ "$1" = --kill-on-bad-exit=1 ]; then shift; fi
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" & done
wait
"""


@pytest.mark.parametrize("machines", [1, 2])
def test_a_slurm_job_starts_a_launcher_on_every_machine(machines: int, tmp_path: Path) -> None:
    scontrol = '#!/bin/sh\n[ "$*" = "show hostnames localhost,other" ] && printf "localhost\\nother\\n"\n'
    for name, content in (("srun", SRUN), ("scontrol", scontrol), ("rank.py", RANK)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7123456", "SLURM_JOB_NODELIST": "localhost,other", "SLURM_JOB_NUM_NODES": str(machines)}
    launch = f"source utils/launch/launch.sh; launch {tmp_path}/rank.py {tmp_path}/log --a 'b c'"
    command = ["bash", "examples/slurm.sh", "bash", "-c", launch, "utils/launch/launch.sh"]
    environment = os.environ | {"PYTHON": sys.executable, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RANKS": "2"}
    run = subprocess.run(command, cwd=ROOT, env=environment | job, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    ranks = sorted(line for line in run.stdout.splitlines() if line.startswith("is "))
    assert [line.split()[1:4] for line in ranks] == [
        [str(rank), str(rank % 2), str(2 * machines)] for rank in range(2 * machines)
    ]
    assert all("['--a', 'b c']" in line for line in ranks)
    assert machines == 1 or all(" 23456 " in line for line in ranks)  # the port comes from the job
    outside = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert outside.returncode == 2 and outside.stderr.startswith("error: not in a Slurm job: sbatch ")


def test_more_ranks_than_devices_are_refused() -> None:
    check_local_ranks(2, 2)
    with pytest.raises(UserError, match="--num_accelerators 3: there are 2 CUDA devices on this machine"):
        check_local_ranks(3, 2)
