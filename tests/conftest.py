"""Shared set-up: one thread (tests run beside each other), the same random examples in each run."""
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
from hypothesis import settings  # noqa: E402

settings.register_profile("repo", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("repo")
