"""The price of refusing NaN and Inf: a stateless identity call with the check against one without it.

Both servers run in processes of their own, the identity inline; hidden states [1, T, 768] in float32.
"""

import argparse
import statistics
import time
from functools import partial
from multiprocessing.connection import Connection

import torch

from benchmarks.pairs import interleaved, ratio_of
from benchmarks.processes import one_torch_thread, process
from splitlearn_comm import GRPCComputeClient, GRPCComputeServer
from splitlearn_comm.server import GRPCServerConfig
from splitlearn_comm.testing import Identity

CALLS = 60


def serve(ready: Connection, *, refuse_nonfinite: bool) -> None:
    """Serve the identity until the process is ended."""
    torch.set_num_threads(1)
    config = GRPCServerConfig(refuse_nonfinite=refuse_nonfinite)
    server = GRPCComputeServer(Identity(), port=0, config=config)
    server.start(on_ready=lambda: ready.send(server.address))


def median_s(client: GRPCComputeClient, tensor: torch.Tensor) -> float:
    """Return the median time of some calls."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        client.compute(tensor)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main(num_pairs: int) -> None:
    """Print the table."""
    one_torch_thread()
    print("compute() with the check for NaN and Inf / without it")
    with (
        process(partial(serve, refuse_nonfinite=True)) as with_check,
        process(partial(serve, refuse_nonfinite=False)) as without_check,
        GRPCComputeClient(with_check) as checked,
        GRPCComputeClient(without_check) as unchecked,
    ):
        for num_tokens in (1, 10, 512):
            tensor = torch.randn(1, num_tokens, 768)
            measured = interleaved(partial(median_s, checked, tensor), partial(median_s, unchecked, tensor), num_pairs)
            print(f"  {num_tokens} tokens: {ratio_of(*measured)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=11, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
