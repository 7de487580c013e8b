"""Shared by the stages. Importing it settles, before DeepSpeed is imported, what the libraries say and look for."""

import logging
import os
import warnings

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed searches for accelerators and warns
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# DeepSpeed still calls collectives by the names torch 2.13 renamed; users can do nothing about it.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
