"""Test doubles, public: what to serve, peers that are slow, faulty or silent, links bad or broken, contracts."""

from splitlearn_comm.testing.contract import SessionHostContract
from splitlearn_comm.testing.direction import Direction
from splitlearn_comm.testing.dropping_peer import DroppingPeer
from splitlearn_comm.testing.faults import Cut, Delay, Drop, Duplicate, RelayStatistics
from splitlearn_comm.testing.faulty_relay import FaultyRelay
from splitlearn_comm.testing.functions import Failing, FaultyFunction, Gated, Identity, SlowFunction, Tenfold
from splitlearn_comm.testing.link.emulator import LinkEmulator
from splitlearn_comm.testing.link.quality import LinkQuality
from splitlearn_comm.testing.link.statistics import LinkStatistics
from splitlearn_comm.testing.loopback import loopback
from splitlearn_comm.testing.process import ServerProcess
from splitlearn_comm.testing.proxy import CuttableProxy
from splitlearn_comm.testing.recording import RecordedCall, RecordingObserver
from splitlearn_comm.testing.running_sum import RunningSumHost
from splitlearn_comm.testing.waiting import eventually

__all__ = [
    "Cut",
    "CuttableProxy",
    "Delay",
    "Direction",
    "Drop",
    "DroppingPeer",
    "Duplicate",
    "Failing",
    "FaultyFunction",
    "FaultyRelay",
    "Gated",
    "Identity",
    "LinkEmulator",
    "LinkQuality",
    "LinkStatistics",
    "RecordedCall",
    "RecordingObserver",
    "RelayStatistics",
    "RunningSumHost",
    "ServerProcess",
    "SessionHostContract",
    "SlowFunction",
    "Tenfold",
    "eventually",
    "loopback",
]
