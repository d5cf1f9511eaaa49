"""Send tensors to a function on another machine. Start simple_server.py first.

python examples/simple_client.py                    port 50051 of this machine
python examples/simple_client.py 10.0.0.7:50051
"""

import sys

import torch

from splitlearn_comm import CommError, StepBreakdown
from splitlearn_comm.quickstart import Client


def describe(step: StepBreakdown) -> str:
    return f"{step.total_s:.4f} s, of which {step.network_s:.4f} s on the way; {step.bytes_sent} bytes sent"


def main(address: str = "localhost:50051") -> None:
    with Client(address, codec="bf16", timings=True) as client:
        info = client.get_info()
        if "output" not in info.extra:
            sys.exit(
                f"{address} serves {info.name!r}, and not what simple_server.py does: start that, and name its port"
            )
        print(f"{info.name} at {address}: {info.extra['output']}")

        # One call: raw, in the tensor's own dtype.
        print(client.compute(torch.tensor([0.0, 1.0, 2.0])))

        # Many in a row go over one stream, which is faster; here in bfloat16, because the client was told so.
        with client.session() as session:
            for _ in range(3):
                session.step(torch.randn(1, 8, 1024))
                if session.breakdown:
                    print(f"[1, 8, 1024] in {describe(session.breakdown)}")

            # A refusal says what was expected, and the session goes on.
            try:
                session.step(torch.full((1, 8), float("nan")))
            except CommError as error:
                print(f"{error.code.name}: {error}")
            print(f"after the refusal: {tuple(session.step(torch.zeros(1, 4, 4)).shape)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
