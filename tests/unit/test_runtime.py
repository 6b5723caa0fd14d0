"""What a process that computes sets up for itself."""

import os
import platform
import subprocess
import sys

import pytest

PAGES = 1024  # of 4 MiB, which the system would clear again for every tensor


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize(("settings", "keeps"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_freed_memory_serves_the_next_tensor(settings, keeps):
    """A user's own setting stands. The first tensors meet a heap whose holes are a little too small."""
    code = """
import resource
from kdlab import runtime
runtime.start_torch(1)
import torch
for number in range(48):
    if number == 32:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(1 << 20).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    told = subprocess.run([sys.executable, "-c", code], env=inherited | settings, capture_output=True, check=True)
    assert (int(told.stdout) < 16 * PAGES / 2) == keeps
