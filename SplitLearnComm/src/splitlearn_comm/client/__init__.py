"""The clients, synchronous and asyncio: two thin shells around the same cursor, retries and messages."""

from splitlearn_comm.client.address_book import AddressBook
from splitlearn_comm.client.aio_client import AsyncComputeClient
from splitlearn_comm.client.aio_session import AsyncClientSession
from splitlearn_comm.client.client import GRPCComputeClient
from splitlearn_comm.client.credentials import ClientTLS
from splitlearn_comm.client.retry import ExponentialBackoff, FixedDelay, RetryStrategy
from splitlearn_comm.client.session import ClientSession
from splitlearn_comm.client.settings import ClientOptions, ClientSettings
from splitlearn_comm.client.statistics import ClientStatistics, StepBreakdown
from splitlearn_comm.client.timeouts import Timeouts

__all__ = [
    "AddressBook",
    "AsyncClientSession",
    "AsyncComputeClient",
    "ClientOptions",
    "ClientSession",
    "ClientSettings",
    "ClientStatistics",
    "ClientTLS",
    "ExponentialBackoff",
    "FixedDelay",
    "GRPCComputeClient",
    "RetryStrategy",
    "StepBreakdown",
    "Timeouts",
]
