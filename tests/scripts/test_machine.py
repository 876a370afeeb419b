"""scripts/machine.py: a benchmark names the day and the machine."""

import datetime
import json
import os
import platform
from typing import Any

import pytest


@pytest.fixture
def script(load_script: Any) -> Any:
    return load_script("machine")


def test_it_names_day_processor_cores_and_kernel(script: Any) -> None:
    head = json.loads(json.dumps(script.machine()))
    today = datetime.date.today()
    assert datetime.date.fromisoformat(head["date"]) in (today, today - datetime.timedelta(1))
    assert list(head["machine"]) == ["cpu", "cpus", "kernel"]
    assert head["machine"]["cpus"] == os.cpu_count()
    assert head["machine"]["kernel"] == platform.release()


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel name\t: Xeon: a name\nmodel name\t: another\n", "Xeon: a name"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", platform.processor()),  # as on ARM
        (None, platform.processor()),  # not Linux
    ],
)
def test_the_processor_is_the_first_model_name_of_cpuinfo(
    cpuinfo: str | None, name: str, script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(script, "Path", lambda path: file)
    assert script.machine()["machine"]["cpu"] == name
