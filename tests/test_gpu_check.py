"""scripts/gpu_check says plainly that it has nothing to check without a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "gpu_check"


def test_without_a_device_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(SCRIPT), str(tmp_path / "report")], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpu_check: this machine shows no CUDA device; nothing was checked.\n"
    assert not (tmp_path / "report").exists()
