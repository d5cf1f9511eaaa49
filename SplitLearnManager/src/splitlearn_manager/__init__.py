"""Hosts the Trunk of split language models for many clients."""

from splitlearn_manager.config import ServerConfig
from splitlearn_manager.errors import DeviceNotFoundError, ManagerError
from splitlearn_manager.managed_server import ManagedServer

__all__ = ["DeviceNotFoundError", "ManagedServer", "ManagerError", "ServerConfig"]
