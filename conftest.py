"""What every test of every package stands on: one thread a process, no way to the real hub.

The environment is set before anything imports torch or huggingface_hub, and processes that a test starts inherit it.
"""

import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.support.plugin"]

# Several tests, each with servers in processes of their own, share the machine: more threads would only wait for
# each other. Sums in another order are other sums, too: one thread gives the same bits on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# torch.compile keeps a pool of processes otherwise, for as long as the process lives that has compiled something.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# Property tests take the same examples in every run, as long as one wants: a suite that fails does so again. `make
# faults` looks for others (`--hypothesis-profile others`).
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("others", settings.get_profile("suite"), derandomize=False, max_examples=1000)
settings.load_profile("suite")

# A test that wants a hub takes the stand-in; none may pass by a model that happens to be in someone's cache.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Give the run an empty hub cache; the workers of a parallel run share their controller's."""
    if not hasattr(config, "workerinput"):
        os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="splitlearn-tests-")
        # Digests that a test made are remembered here and not in the user's cache.
        os.environ["SPLITLEARN_CACHE"] = os.path.join(os.environ["HF_HOME"], "splitlearn")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
