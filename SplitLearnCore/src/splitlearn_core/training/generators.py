"""The states of all random generators that a training may draw from, as tensors."""

import random
from collections.abc import Mapping

import numpy as np
import torch

CPU = "random state"
PYTHON, NUMPY = "random state of python", "random state of numpy"
CUDA = "random state of cuda:"


def generator_states() -> dict[str, torch.Tensor]:
    """Return the states of torch's generators, Python's and numpy's, by name, on the CPU."""
    _, words, _ = random.getstate()
    _, keys, place, *_ = np.random.get_state(legacy=True)
    states = {
        CPU: torch.get_rng_state(),
        PYTHON: torch.tensor(words, dtype=torch.int64),
        NUMPY: torch.tensor([*(int(key) for key in keys), int(place)], dtype=torch.int64),
    }
    if torch.cuda.is_available():
        states |= {f"{CUDA}{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_generators(states: Mapping[str, torch.Tensor]) -> None:
    """Give the generators the states that were returned; those of devices that are not here are passed over."""
    torch.set_rng_state(states[CPU])
    random.setstate((3, tuple(states[PYTHON].tolist()), None))
    *keys, place = states[NUMPY].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), place, 0, 0.0))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if (state := states.get(f"{CUDA}{index}")) is not None:
                torch.cuda.set_rng_state(state, index)
