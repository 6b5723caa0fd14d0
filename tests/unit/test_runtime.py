"""What a process that computes sets up for itself."""

import os
import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize(("settings", "keeps"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_freed_memory_serves_the_next_tensor(settings, keeps):
    """4 MiB are 1,024 pages, which the system would clear again; a user's own setting stands."""
    code = """
import resource
from kdlab import runtime
runtime.start_torch(1)
import torch
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(1 << 20).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    told = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, check=True)
    assert (int(told.stdout) < 100) == keeps
