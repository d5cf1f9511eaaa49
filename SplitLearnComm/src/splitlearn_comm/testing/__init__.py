"""Test doubles, public: functions and a host to serve, a server to kill, a connection to cut, a contract to keep."""

from splitlearn_comm.testing.contract import SessionHostContract
from splitlearn_comm.testing.functions import Failing, Gated, Identity, Tenfold
from splitlearn_comm.testing.process import ServerProcess
from splitlearn_comm.testing.proxy import CuttableProxy
from splitlearn_comm.testing.running_sum import RunningSumHost
from splitlearn_comm.testing.waiting import eventually

__all__ = [
    "CuttableProxy",
    "Failing",
    "Gated",
    "Identity",
    "RunningSumHost",
    "ServerProcess",
    "SessionHostContract",
    "Tenfold",
    "eventually",
]
