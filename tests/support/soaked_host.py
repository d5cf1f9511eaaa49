"""What is served in the soak: sums, and how many sessions the host still has."""

from dataclasses import replace

from splitlearn_comm import ServiceInfo
from splitlearn_comm.testing import RunningSumHost

SESSIONS = "sessions"


class SoakedHost(RunningSumHost):
    """Says in its information how many sessions it keeps."""

    def get_info(self) -> ServiceInfo:
        return replace(super().get_info(), extra={SESSIONS: str(self.num_sessions)})
