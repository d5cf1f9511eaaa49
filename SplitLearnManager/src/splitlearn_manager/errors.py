"""What can go wrong at a server, beside what its model (`splitlearn_core`) and its wire (`splitlearn_comm`) raise.

ManagerError
└── DeviceNotFoundError  (ValueError)  a device that is not there
"""


class ManagerError(Exception):
    """Root of everything that SplitLearnManager raises on purpose."""


class DeviceNotFoundError(ManagerError, ValueError):
    """A device that this machine, or this build of torch, does not have."""
