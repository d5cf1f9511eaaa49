"""What can go wrong at a server, beside what its model (`splitlearn_core`) and its wire (`splitlearn_comm`) raise.

ManagerError
├── ConfigurationError   (ValueError)    a configuration that cannot be read, or says what cannot be
├── DeviceNotFoundError  (ValueError)    a device that is not there
├── ModelNotFoundError   (LookupError)   no model of this name, or not this version of it
├── ModelStateError                      a command that does not fit what the model is doing
│   └── ModelExistsError                 it is to be loaded, and is loading or loaded already
├── ModelNotReadyError                   the model is there and takes no sessions now
├── BudgetExceededError                  no room for the model in the memory that was set aside
├── ModelLoadError                       a model could not be loaded
├── LoadCancelledError                   somebody cancelled the load
└── ModelFaultError                      a model's process failed in a way it did not expect

`CODES` says under which gRPC status each leaves a server.
"""

import grpc


class ManagerError(Exception):
    """Root of everything that SplitLearnManager raises on purpose."""

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code this kind of error travels under."""
        return next((CODES[cls] for cls in type(self).__mro__ if cls in CODES), grpc.StatusCode.INTERNAL)


class ConfigurationError(ManagerError, ValueError):
    """A configuration that cannot be read, has a key that there is not, or says what cannot be."""


class DeviceNotFoundError(ManagerError, ValueError):
    """A device that this machine, or this build of torch, does not have."""


class ModelNotFoundError(ManagerError, LookupError):
    """No model of this name is known, or not this version of it."""


class ModelStateError(ManagerError):
    """A command that does not fit the model's state: it is loading, loaded, or being unloaded already."""


class ModelExistsError(ModelStateError):
    """The model that is to be loaded is loading, or loaded, already."""


class ModelNotReadyError(ManagerError):
    """The model is known, and takes no sessions in the state it is in."""


class BudgetExceededError(ManagerError):
    """The memory set aside for models does not hold this one too."""


class ModelLoadError(ManagerError):
    """A model could not be loaded.

    Attributes:
        kind: name of the class of what went wrong in the model's process, `"CheckpointError"` for example.
    """

    def __init__(self, message: str, *, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class LoadCancelledError(ManagerError):
    """The load that was waited for was cancelled by somebody else."""


class ModelFaultError(ManagerError):
    """A model's process failed in a way it did not expect; the message is for the log alone."""


CODES: dict[type[ManagerError], grpc.StatusCode] = {
    ConfigurationError: grpc.StatusCode.INVALID_ARGUMENT,
    DeviceNotFoundError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    ModelStateError: grpc.StatusCode.FAILED_PRECONDITION,
    ModelExistsError: grpc.StatusCode.ALREADY_EXISTS,
    ModelNotReadyError: grpc.StatusCode.UNAVAILABLE,
    BudgetExceededError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ModelLoadError: grpc.StatusCode.FAILED_PRECONDITION,
    LoadCancelledError: grpc.StatusCode.CANCELLED,
    ModelFaultError: grpc.StatusCode.INTERNAL,
}
