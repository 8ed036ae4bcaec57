"""All of test_device.py on a device that works as late as it may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
def test_what_holds_on_a_device_holds_on_one_that_works_as_late_as_it_may() -> None:
    """In a process of its own: torch takes a new device before its first backward pass only, and the other tests are to
    see none.
    """
    tests = Path(__file__).parent / "test_device.py"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-m", "device", str(tests)]
    environment = os.environ | {"EASGD_TEST_DEVICE": "late:0"}
    with subprocess.Popen(
        command, env=environment, cwd=tests.parent.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=580)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # by which it says how far it is, and where
            said, _ = process.communicate(timeout=15)
    assert process.returncode == 0 and "skipped" not in said, said
