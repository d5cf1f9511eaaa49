"""Hosts the Trunk of split language models for many clients."""

from splitlearn_manager.config import ServerConfig
from splitlearn_manager.managed_server import ManagedServer

__all__ = ["ManagedServer", "ServerConfig"]
