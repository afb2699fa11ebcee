"""Settings of the whole suite: the same cases every time, and one thread a worker where several share the machine."""

import os

import hypothesis

hypothesis.settings.register_profile("exact", deadline=None, derandomize=True)
hypothesis.settings.load_profile("exact")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; child processes inherit it
