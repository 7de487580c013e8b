"""The states of every random generator of a process, as plain numbers and tensors."""

import random
from typing import Any

import numpy
import torch

States = dict[str, Any]


def random_states() -> States:
    """States of Python's, NumPy's and torch's generators (CPU and CUDA); `torch.load` reads them without pickle."""
    name, keys, *rest = numpy.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: States) -> None:
    """Put the generators back where `random_states` found them; CUDA's only where there are as many devices."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    cuda = states.get("cuda", [])
    if cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
