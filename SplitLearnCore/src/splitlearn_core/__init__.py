"""Exact splits of Hugging Face decoder models: everything that happens inside one process."""

from splitlearn_core.checkpoint.tokenizer import load_tokenizer
from splitlearn_core.errors import (
    CheckpointError,
    CoreError,
    PartInputError,
    SplitPointError,
    TrainingError,
    TrunkMismatchError,
    UnsupportedModelError,
    UnsupportedOptionError,
)
from splitlearn_core.parts.bottom import Bottom
from splitlearn_core.parts.client import SplitModel
from splitlearn_core.parts.compiling import compile_part
from splitlearn_core.parts.load import load_part, load_split_model
from splitlearn_core.parts.load_client import load_client_model
from splitlearn_core.parts.load_piece import SplitConfig
from splitlearn_core.parts.part import HiddenOutput, LogitsOutput
from splitlearn_core.parts.port import LocalTrunk, TrunkInfo, TrunkPort, TrunkSession
from splitlearn_core.parts.splitter import ModelFactory, ModelSplitter, SplitPlan
from splitlearn_core.parts.top import Top
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.cut_copy import SplitResult
from splitlearn_core.split.points import SplitPoints, default_split_points
from splitlearn_core.split.split_model import split_model

__version__ = "0.1.0"

__all__ = [
    "Bottom",
    "CheckpointError",
    "CoreError",
    "HiddenOutput",
    "LocalTrunk",
    "LogitsOutput",
    "ModelFactory",
    "ModelSplitter",
    "PartInputError",
    "SplitConfig",
    "SplitModel",
    "SplitPlan",
    "SplitPointError",
    "SplitPoints",
    "SplitResult",
    "Top",
    "TrainingError",
    "Trunk",
    "TrunkInfo",
    "TrunkMismatchError",
    "TrunkPort",
    "TrunkSession",
    "UnsupportedModelError",
    "UnsupportedOptionError",
    "compile_part",
    "default_split_points",
    "load_client_model",
    "load_part",
    "load_split_model",
    "load_tokenizer",
    "split_model",
]
