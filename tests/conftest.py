"""Eight host devices for every test, set before JAX starts; and the mark of slow tests."""

import os
import tempfile

import pytest

from tests.slow import SLOW

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution "
    + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Programs that several tests compile are compiled once, by whichever worker comes first, and never
# taken from an earlier session; mutants.run names a folder for all that it starts.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _programs = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("TEST_PROGRAMS") or _programs.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


def pytest_collection_modifyitems(items):
    """Marks what is slow: the list in `slow.py`, and whatever is marked where it is written."""
    for item in items:
        if any(name in item.nodeid for name in SLOW):
            item.add_marker(pytest.mark.slow)
