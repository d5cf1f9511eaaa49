import torch

from splitlearn_comm.testing import RunningSumHost, SessionHostContract


class TestRunningSum(SessionHostContract):
    def make_host(self) -> RunningSumHost:
        return RunningSumHost()

    def make_hidden(self, batch: int, num_tokens: int) -> torch.Tensor:
        return torch.randint(-9, 9, (batch, num_tokens, 4)).float()
