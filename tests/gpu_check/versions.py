"""What is there: the device, the libraries, compilers, and whether every script can be imported."""

import importlib
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from torch.utils.cpp_extension import CUDA_HOME

from tests.gpu_check.jobs import Checks, NotThere, Settings
from tests.helpers import ROOT
from utils.memory.sizes import GIB

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "accelerate", "datasets", "torchjd", "numpy", "tensorboard")
FOLDERS = ("step1_sft", "step2_reward", "step3_gapo", "eval", "utils")


def version_checks(settings: Settings) -> Checks:
    return {"device": device, "host": host, "libraries": libraries, "CUDA toolkit": toolkit, "scripts": scripts}


def device() -> str:
    if not torch.cuda.is_available():
        raise NotThere(f"no CUDA device (torch {torch.__version__} was built for CUDA {torch.version.cuda})")
    found = torch.cuda.get_device_properties(0)
    return (
        f"{found.name}, {found.total_memory / GIB:.1f} GiB, compute capability {found.major}.{found.minor},"
        f" driver {driver()}, CUDA {torch.version.cuda},"
        f" NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}, bf16 {torch.cuda.is_bf16_supported()},"
        f" devices {torch.cuda.device_count()}"
    )


def driver() -> str:
    if not shutil.which("nvidia-smi"):
        return "unknown (no nvidia-smi)"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip().replace("\n", ", ") or "unknown"


def host() -> str:
    memory = psutil.virtual_memory()
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads,"
        f" memory {memory.available / GIB:.0f} of {memory.total / GIB:.0f} GiB free, Python {platform.python_version()}"
    )


def libraries() -> str:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return ", ".join(f"{package} {number}" for package, number in found.items())


def toolkit() -> str:
    """What DeepSpeed's kernels (the hybrid engine) and torch.compile need to be built."""
    compilers = {name: shutil.which(name) or "none" for name in ("gcc", "g++", "ninja")}
    said = ", ".join(f"{name} {path}" for name, path in compilers.items())
    if not has_nvcc():
        raise NotThere(f"no nvcc; {said}")
    return f"nvcc in {CUDA_HOME}; {said}"


def has_nvcc() -> bool:
    """torch's CUDA_HOME may be a guess."""
    return CUDA_HOME is not None and (Path(CUDA_HOME) / "bin" / "nvcc").is_file()


def scripts() -> str:
    """Import every script; those that lack a package are named with it."""
    names, missing = [module_name(path) for path in script_files()], {}
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing[name] = error.name or str(error)
    if missing:
        lacking = ", ".join(f"{name} needs {package}" for name, package in missing.items())
        raise NotThere(f"{len(names) - len(missing)} of {len(names)} can be imported; {lacking}")
    return f"{len(names)} of {len(names)} can be imported"


def script_files() -> list[Path]:
    paths = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in paths if "run_main(main)" in path.read_text(encoding="utf-8")]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)
