"""The lives of models: loading, serving and unloading many of them in one server."""

from splitlearn_manager.lifecycle.budget import Budget, Footprint
from splitlearn_manager.lifecycle.config import LifecycleConfig
from splitlearn_manager.lifecycle.entry import ModelStatus
from splitlearn_manager.lifecycle.events import EventStream, ModelEvent
from splitlearn_manager.lifecycle.registry import ModelManager
from splitlearn_manager.lifecycle.runner import ModelRunner, ProcessRunner
from splitlearn_manager.lifecycle.state import TRANSITIONS, Command, Condition, State
from splitlearn_manager.runtime.load_reporter import LoadProgress
from splitlearn_manager.runtime.model_spec import ModelSpec

__all__ = [
    "TRANSITIONS",
    "Budget",
    "Command",
    "Condition",
    "EventStream",
    "Footprint",
    "LifecycleConfig",
    "LoadProgress",
    "ModelEvent",
    "ModelManager",
    "ModelRunner",
    "ModelSpec",
    "ModelStatus",
    "ProcessRunner",
    "State",
]
