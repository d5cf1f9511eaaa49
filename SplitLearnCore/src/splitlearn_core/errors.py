"""What can go wrong inside one process.

CoreError
├── SplitPointError         (ValueError)  cut points out of order or out of range
├── UnsupportedModelError   (ValueError)  a model that cannot be cut exactly
├── CheckpointError         (OSError)     weights that are missing, truncated or of no known format
├── PartInputError          (ValueError)  a tensor that a part cannot take
├── TrunkMismatchError      (ValueError)  this side and the trunk do not belong to one model
├── UnsupportedOptionError  (ValueError)  an option that would need what this side does not hold
└── TrainingError           (ValueError)  what cannot be trained so
    ├── AdapterError        an adapter that cannot be had across a cut, or that changes nothing
    ├── PassExpiredError    a pass whose activations are not kept any more
    ├── StaleGradientError  a gradient of a forward that other weights made
    ├── TrainingDataError   data that nothing can be learned from
    ├── TrainingMemoryError trainings keep as much as they may, and this would be more
    ├── TrainingBusyError   the trunk has no room for this training now, and may have it later
    └── TrainingLostError   (ConnectionError) a server that is gone, or knows nothing of the training any more
"""


class CoreError(Exception):
    """Root of everything that SplitLearnCore raises on purpose."""


class SplitPointError(CoreError, ValueError):
    """Cut points that are out of order or out of range for the model."""


class UnsupportedModelError(CoreError, ValueError):
    """A model that cannot be cut exactly; the message names it and the reason."""


class CheckpointError(CoreError, OSError):
    """A checkpoint whose weights are missing, truncated, or of no known format."""


class PartInputError(CoreError, ValueError):
    """A tensor that a part cannot take: wrong rank, width, dtype or length."""


class TrunkMismatchError(CoreError, ValueError):
    """This side and the trunk do not belong to the same model or the same cut."""


class UnsupportedOptionError(CoreError, ValueError):
    """An option that would need tensors which this side of the cut does not hold."""


class TrainingError(CoreError, ValueError):
    """What cannot be trained in the way that was asked for."""


class AdapterError(TrainingError):
    """An adapter that cannot be had across a cut, or that changes nothing."""


class PassExpiredError(TrainingError):
    """A pass whose activations are not kept any more; running its forward again gives them back."""


class StaleGradientError(TrainingError):
    """A gradient of a forward that was made with other weights than those of now."""


class TrainingDataError(TrainingError):
    """Data that nothing can be learned from: empty, unreadable, or of another form."""


class TrainingMemoryError(TrainingError):
    """Trainings keep as much memory as they may, and this would be more."""


class TrainingBusyError(TrainingError):
    """The trunk has no room for this training now; the same may be asked for again."""


class TrainingLostError(TrainingError, ConnectionError):
    """The server that trained is gone, or knows nothing of the training any more; a checkpoint goes on."""
