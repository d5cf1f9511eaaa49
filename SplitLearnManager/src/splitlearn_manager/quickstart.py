"""A trunk server in three lines."""

from splitlearn_manager.managed_server import ManagedServer

__all__ = ["ManagedServer"]
