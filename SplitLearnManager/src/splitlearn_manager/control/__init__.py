"""What operators ask of a server while it runs: Open Inference Protocol, version 2, and a little beside it."""

from splitlearn_manager.control.client import ControlClient, ModelState, ServerState

__all__ = ["ControlClient", "ModelState", "ServerState"]
