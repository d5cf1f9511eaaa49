"""The server: limits, sessions over streams, unary calls, start and stop."""

from splitlearn_comm.server.binding import check_binding
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.security import ClientLimits, ServerTLS, TokenFile
from splitlearn_comm.server.server import GRPCComputeServer
from splitlearn_comm.server.statistics import ServerStatistics

__all__ = [
    "ClientLimits",
    "GRPCComputeServer",
    "GRPCServerConfig",
    "ServerStatistics",
    "ServerTLS",
    "TokenFile",
    "check_binding",
]
