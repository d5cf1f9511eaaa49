"""The server: limits, sessions over streams, unary calls, start and stop."""

from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.server import GRPCComputeServer
from splitlearn_comm.server.statistics import ServerStatistics

__all__ = ["GRPCComputeServer", "GRPCServerConfig", "ServerStatistics"]
