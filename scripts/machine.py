"""The machine that a benchmark ran on."""

import datetime
import os
import platform
from pathlib import Path


def machine() -> dict[str, object]:
    """Return date and machine, for the head of a benchmark's JSON."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": {
            "cpu": names[0] if names else platform.processor(),
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
        },
    }
