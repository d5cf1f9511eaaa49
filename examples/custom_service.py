"""A service of your own: images in, what a vision model takes out. Only the bytes of the pixels cross the wire.

python examples/custom_service.py serve                     at port 50051 of this machine
python examples/custom_service.py call localhost:50051      three pictures, from another terminal
"""

import sys

import torch
from torch.nn.functional import interpolate

from splitlearn_comm import ComputeFunction, GRPCComputeServer, InvalidRequestError
from splitlearn_comm.quickstart import Client

SIZE = 224
MEAN_C = torch.tensor([0.485, 0.456, 0.406])  # of ImageNet, as most vision models were trained with
STD_C = torch.tensor([0.229, 0.224, 0.225])


class Preprocess(ComputeFunction):
    """Resize and normalise: uint8 [B, H, W, 3] in, float32 [B, 3, 224, 224] out."""

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype != torch.uint8 or tensor.dim() != 4 or tensor.shape[3] != 3 or 0 in tensor.shape:
            # A CommError reaches the client as it is; whatever else is raised, only as a fixed sentence.
            raise InvalidRequestError(
                f"expected a batch of pictures, uint8 [B, H, W, 3], came {tensor.dtype} {list(tensor.shape)}"
            )
        pixels_BCHW = tensor.permute(0, 3, 1, 2).float() / 255
        resized_BCHW = interpolate(pixels_BCHW, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        return (resized_BCHW - MEAN_C[:, None, None]) / STD_C[:, None, None]


def serve(port: str = "50051") -> None:
    server = GRPCComputeServer(Preprocess(), port=int(port))
    server.start(on_ready=lambda: print(f"listening at {server.address}", flush=True))


def call(address: str = "localhost:50051") -> None:
    pictures_BHWC = torch.randint(0, 256, (3, 480, 640, 3), dtype=torch.uint8)
    with Client(address) as client:
        ready_BCHW = client.compute(pictures_BHWC)
        print(f"{list(pictures_BHWC.shape)} became {list(ready_BCHW.shape)}, mean {ready_BCHW.mean():.2f}")
        try:
            client.compute(pictures_BHWC.float())
        except ValueError as error:
            print(error)


if __name__ == "__main__":
    doing = {"serve": serve, "call": call}.get(sys.argv[1] if sys.argv[1:] else "")
    if doing is None or len(sys.argv) > 3:
        sys.exit("usage: python examples/custom_service.py serve [PORT] | call [HOST:PORT]")
    doing(*sys.argv[2:])
