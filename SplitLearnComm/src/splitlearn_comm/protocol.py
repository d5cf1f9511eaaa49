"""What client and server have to agree on besides the messages."""

from __future__ import annotations

from typing import Final

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["ComputeService"].full_name
COMPUTE: Final = f"/{SERVICE}/Compute"
SESSION: Final = f"/{SERVICE}/Session"
HEALTH_CHECK: Final = f"/{SERVICE}/HealthCheck"
GET_SERVICE_INFO: Final = f"/{SERVICE}/GetServiceInfo"
WATCH_STATISTICS: Final = f"/{SERVICE}/WatchStatistics"

KIND_METADATA: Final = "splitlearn-error"
"""Trailing metadata of a failed unary call: the name of the exception class."""
REQUEST_ID_METADATA: Final = "splitlearn-request-id"
"""Metadata of a call, and trailing metadata of one that failed: its name in the server's log."""
PUSHBACK_METADATA: Final = "grpc-retry-pushback-ms"
"""Trailing metadata of a call over a client's limits: after how long the same may be asked for again. gRPC's word."""
DRAINING_METADATA: Final = "splitlearn-draining"
"""Trailing metadata of a stream that a server ended because it stops: its session is still there, to be taken away."""
AUTHORIZATION_METADATA: Final = "authorization"
"""Metadata of a call: `Bearer` and the client's token (RFC 6750)."""
BEARER: Final = "Bearer"
"""The scheme of that."""
MODEL_METADATA: Final = "splitlearn-model"
"""Metadata of a call: the name of the model it is for, where an address serves several. A proxy may route by it."""
SESSION_METADATA: Final = "splitlearn-session"
"""Metadata of a session's stream: its name. A proxy that hashes by it brings a stream back to where the session is."""
VERSION_METADATA: Final = "splitlearn-model-version"
"""Metadata of a call: the version of that model; without it the newest."""

MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024
"""Default limit of one message, on both sides: gpt2-xl's hidden states of 40 x 1024 tokens in float32."""
KEEPALIVE_TIME_MS: Final = 20_000
"""A client asks a silent connection for a sign of life this often ..."""
KEEPALIVE_TIMEOUT_MS: Final = 10_000
"""... and gives it up when none comes for so long: half a minute after a cable is cut."""
SHORTEST_PING_INTERVAL_MS: Final = 1_000
"""A client that wants to notice sooner may ask this often; a server takes more for abuse and hangs up."""
