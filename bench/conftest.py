"""What every benchmark shares: facts about the machine and the build in the JSON."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    machine_info["commit"] = commit.stdout.strip() or "unknown"
    machine_info["libc"] = " ".join(platform.libc_ver())
