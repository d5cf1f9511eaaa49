"""Tensors and sessions over gRPC between two Python processes; knows no model.

Five names matter at first. A `ComputeFunction` is what you write (or a `ModelComputeFunction`, of a torch module); a
`GRPCComputeServer` serves it; a `GRPCComputeClient`, or for asyncio an `AsyncComputeClient`, calls it from elsewhere; a
`CommError` is what goes wrong between the two::

    class Double(ComputeFunction):
        def compute(self, tensor): return tensor * 2
    with GRPCComputeServer(Double(), port=0) as server, GRPCComputeClient(server.address) as client:
        print(client.compute(torch.ones(3)))

Whoever keeps state between calls writes a `SessionHost`. The rest of the names are options, and what they are made of.
"""

from splitlearn_comm.client import (
    AddressBook,
    AsyncClientSession,
    AsyncComputeClient,
    ClientOptions,
    ClientSession,
    ClientSettings,
    ClientStatistics,
    ClientTLS,
    GRPCComputeClient,
    StepBreakdown,
)
from splitlearn_comm.codec import AutoCodec, CodecPlan, Coded, CompressedTensorCodec, TensorCodec, register_codec
from splitlearn_comm.directory import HostDirectory, Lease, NamedHosts, SingleHost, Wanted
from splitlearn_comm.errors import (
    AdapterNotFoundError,
    AddressInUseError,
    AuthenticationError,
    ClientClosedError,
    CommError,
    DeadlineExceededError,
    FingerprintMismatchError,
    InvalidRequestError,
    MessageTooLargeError,
    PassExpiredError,
    PermissionDeniedError,
    RemoteInternalError,
    ResourceExhaustedError,
    SequenceTooLongError,
    ServerUnavailableError,
    ServiceNotFoundError,
    SessionNotFoundError,
    StaleGradientError,
    StepOrderError,
    UnsupportedOperationError,
)
from splitlearn_comm.function import ComputeFunction, ModelComputeFunction
from splitlearn_comm.host import SessionHost
from splitlearn_comm.messages import (
    Action,
    CacheUse,
    Codecs,
    ComputeCall,
    ComputeResult,
    Crop,
    Forward,
    KVEntries,
    KVEntry,
    Load,
    Reorder,
    ServiceInfo,
    StartRecording,
)
from splitlearn_comm.observer import CallSummary, ObservedCall, Observer, StepSummary, Together
from splitlearn_comm.samples import Sample, SampleSource, StatisticsReading
from splitlearn_comm.server import (
    ClientLimits,
    GRPCComputeServer,
    GRPCServerConfig,
    ServerStatistics,
    ServerTLS,
    TokenFile,
)

__all__ = [
    "Action",
    "AdapterNotFoundError",
    "AddressBook",
    "AddressInUseError",
    "AsyncClientSession",
    "AsyncComputeClient",
    "AuthenticationError",
    "AutoCodec",
    "CacheUse",
    "CallSummary",
    "ClientClosedError",
    "ClientLimits",
    "ClientOptions",
    "ClientSession",
    "ClientSettings",
    "ClientStatistics",
    "ClientTLS",
    "CodecPlan",
    "Codecs",
    "Coded",
    "CommError",
    "CompressedTensorCodec",
    "ComputeCall",
    "ComputeFunction",
    "ComputeResult",
    "Crop",
    "DeadlineExceededError",
    "FingerprintMismatchError",
    "Forward",
    "GRPCComputeClient",
    "GRPCComputeServer",
    "GRPCServerConfig",
    "HostDirectory",
    "InvalidRequestError",
    "KVEntries",
    "KVEntry",
    "Lease",
    "Load",
    "MessageTooLargeError",
    "ModelComputeFunction",
    "NamedHosts",
    "ObservedCall",
    "Observer",
    "PassExpiredError",
    "PermissionDeniedError",
    "RemoteInternalError",
    "Reorder",
    "ResourceExhaustedError",
    "Sample",
    "SampleSource",
    "SequenceTooLongError",
    "ServerStatistics",
    "ServerTLS",
    "ServerUnavailableError",
    "ServiceInfo",
    "ServiceNotFoundError",
    "SessionHost",
    "SessionNotFoundError",
    "SingleHost",
    "StaleGradientError",
    "StartRecording",
    "StatisticsReading",
    "StepBreakdown",
    "StepOrderError",
    "StepSummary",
    "TensorCodec",
    "Together",
    "TokenFile",
    "UnsupportedOperationError",
    "Wanted",
    "register_codec",
]
