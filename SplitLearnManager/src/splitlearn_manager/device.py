"""Choosing where a hosted model runs, and in which dtype."""

import torch

from splitlearn_manager.errors import DeviceNotFoundError


def choose_device(device: torch.device | str | None) -> torch.device:
    """Return the device asked for, else the first GPU, else the CPU.

    Raises:
        DeviceNotFoundError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise DeviceNotFoundError(f"device {str(device)!r} is not there: {str(error).splitlines()[0]}") from error
    return chosen
