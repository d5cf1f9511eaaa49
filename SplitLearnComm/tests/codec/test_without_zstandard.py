"""The package works where the client extra is not installed, and says what to install."""

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["zstandard"] = None  # what an import of a package that is not there finds
import torch
from splitlearn_comm.codec import Payload, codec_named, codec_names, decode_payload, encode_payload
assert "zstd" in codec_names()
assert encode_payload(torch.ones(1, 256), "int8").codec == "int8"
for use in (lambda: codec_named("zstd"), lambda: encode_payload(torch.ones(3), "zstd")):
    try:
        use()
    except ImportError as error:
        print(error)
try:
    decode_payload(Payload(shape=(1,), dtype=torch.float32, data=b"1234", codec="zstd"))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_missing_zstandard_is_an_import_error_that_names_the_pip_line() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    first, second, third = ran.stdout.splitlines()
    assert first == second == "the codec 'zstd' needs: pip install 'splitlearn-comm[client]'"
    assert third.startswith("UnsupportedOperationError")
    assert "expected one of raw, bf16, fp16, int8, int4;" in third
