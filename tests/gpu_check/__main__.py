"""Entry point of the checks on a GPU: python -m tests.gpu_check --help"""

import os

# Before any library is imported, here and in the processes of the checks: no network.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import sys
import tempfile

import torch

from tests.gpu_check.jobs import Job, Settings, run_jobs
from tests.gpu_check.record import Record
from utils.cli.arguments import Parser
from utils.cli.types import positive_float
from utils.output.files import check_writable
from utils.process.errors import run_main

NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
PROBED = {"TORCH_CUDA_ARCH_LIST": ""}  # build for the GPU that is there: DeepSpeed cannot read "9.0a"
JOBS = [
    Job("versions", "machine and libraries", "tests.gpu_check.versions:version_checks", share=20),
    Job("parity", "the step on the CPU", "tests.gpu_check.parity:cpu_checks", share=20, environment=NO_GPU),
    Job("parity", "the step on the GPU", "tests.gpu_check.parity:gpu_checks", share=15),
    *(Job("update", f"ZeRO-{stage}", "tests.gpu_check.updates:update_checks", (stage,), share=20) for stage in (0, 2)),
    Job("update", "ZeRO-3", "tests.gpu_check.updates:update_checks", (3,), share=30),
    Job("critic-free", "ZeRO-2", "tests.gpu_check.updates:critic_free_checks", (2,), share=20),
    Job("critic-free", "7B with LoRA", "tests.gpu_check.updates:largest_checks", share=50),
    Job("memory", "logits in chunks", "tests.gpu_check.updates:chunk_checks", share=12),
    Job("memory", "offload under ZeRO-2", "tests.gpu_check.updates:offload_checks", (2,), share=20),
    Job("recovery", "NaN", "tests.gpu_check.recovery:nan_checks", share=15),
    Job("recovery", "resume", "tests.gpu_check.recovery:resume_checks", share=90),
    Job("pairs", "DPO on two objectives", "tests.gpu_check.pairs:pair_checks", share=40),
    Job("tasks", "CGPO's losses", "tests.gpu_check.constrained:constrained_checks", share=20),
    Job("rollout", "generation", "tests.gpu_check.rollouts:generation_checks", share=65),
    Job("rollout", "hybrid engine", "tests.gpu_check.rollouts:hybrid_checks", share=75, environment=PROBED),
]
SECTIONS = tuple(dict.fromkeys(job.section for job in JOBS))


def main() -> None:
    args = parse_arguments()
    small = not torch.cuda.is_available()
    if small:  # as many threads a process as there are cores would have them fight, and round differently
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = check_writable(args.output or tempfile.mkdtemp(prefix="gpu_check_"), "--output")
    machine = f"CPU, {os.cpu_count()} cores, in small" if small else torch.cuda.get_device_name()
    record = Record(folder, f"What one GPU can show: {machine}", 60 * args.minutes)
    print(f"{machine}; the table goes to {record.path}, what the checks print to {record.log}", flush=True)
    print("[importing libraries for the first checks]", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        chosen = [job for job in JOBS if job.section in args.sections]
        run_jobs(chosen, Settings(small, scratch), 60 * args.minutes, record)
    record.finish()
    sys.exit(int(record.failed))


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m tests.gpu_check",
        description="What one GPU can show of this project: each check is a row of a table, which is printed and"
        " written as it grows. Statuses: ok, failed, not there (the machine lacks what it is about), no time left."
        " Without a GPU the same checks run on the CPU with tiny models. Exit code 1 if a check failed. Needs no"
        " network; models are random.",
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=positive_float, default=7.0, help="that all checks may take; each has a share (7)"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        default=os.environ.get("OUT"),
        help="folder of gpu_check.md and gpu_check.log ($OUT, else a fresh one among temporary files)",
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="what to run (all)")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
