"""Hosts the Trunk of split language models for many clients."""

from splitlearn_manager.config import ServerConfig
from splitlearn_manager.errors import DeviceNotFoundError, ManagerError
from splitlearn_manager.lifecycle import LifecycleConfig, ModelManager, ModelSpec
from splitlearn_manager.managed_server import ManagedServer
from splitlearn_manager.model_server import ModelServer

__all__ = [
    "DeviceNotFoundError",
    "LifecycleConfig",
    "ManagedServer",
    "ManagerError",
    "ModelManager",
    "ModelServer",
    "ModelSpec",
    "ServerConfig",
]
