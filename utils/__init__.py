"""Shared by the stages. Importing it settles, before DeepSpeed is imported, what the libraries say and look for."""

import logging
import os
import warnings

import torch

if os.environ.get("DS_ACCELERATOR") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # asked to stay on the CPU; the launcher would show the ranks its GPUs
# DeepSpeed would search for an accelerator itself, and might pick one that `device` does not know.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# DeepSpeed still calls collectives by the names torch 2.13 renamed; users can do nothing about it.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
