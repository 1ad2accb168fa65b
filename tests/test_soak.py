"""Compiled programs called many times, from several threads, on several devices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

N_CALLS = 100_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from Linux's /proc")
def test_no_leak_and_no_wrong_number():
    flags = "--xla_force_host_platform_device_count=4"
    found = subprocess.run(
        [sys.executable, "-m", "tests.soak", str(N_CALLS)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "0"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr
    before, after, wrong = map(int, found.stdout.split())
    assert wrong == 0
    assert 0.98 < after / before < 1.02, (before, after)
