"""What a machine has: each answer against a machine made for it, and no token anywhere."""

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from dstools import machine
from dstools_converters.errors import DstoolsError

TOKEN = "hf_MARKEDxxx"
UNLIMITED = 0x7FFFFFFFFFFFF000  # what version 1 says where there is no limit
PROPERTIES = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=150_000_000_000)


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


# ---------------------------------------------------------------------------------------- packages


def test_versions_are_those_of_the_metadata_and_none_of_what_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "PACKAGES", {"numpy": ("no-such", "numpy"), "gone": ("no-such",)})
    found = {"numpy": importlib.metadata.version("numpy"), "gone": None}
    assert machine.installed() == found


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["click>=8", 'numpy>=2; extra == "torch"'], []),
        (['no-such>=1.5; extra == "torch"', 'other; extra == "distill"'], ["no-such>=1.5"]),
        (['numpy>=99; extra == "torch"'], ["numpy>=99"]),  # is too old
        (["no-such"], ["no-such"]),  # of no extra: everything needs it
    ],
)
def test_an_extra_lacks_what_is_not_installed_or_of_another_version(
    lines: list[str], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = SimpleNamespace(get_all=lambda key: ["torch", "distill"])
    monkeypatch.setattr(machine, "metadata", lambda name: told)
    monkeypatch.setattr(machine, "requires", lambda name: lines)
    assert machine.missing("torch") == wanted


def test_an_extra_that_is_not_known_is_missing_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.missing("no-such-extra") == ["dstools-llm[no-such-extra]"]
    monkeypatch.setattr(machine, "DISTRIBUTION", "no-such-distribution")
    assert machine.missing("torch") == ["no-such-distribution[torch]"]


# ------------------------------------------------------------------------------------ memory, disk


def test_memory_is_that_of_the_system() -> None:
    found = machine.memory()
    assert found.total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < found.available <= found.total


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "1000\n"}, 1000),
        ("0::/a/b\n", {"a/memory.max": "1000\n", "a/b/memory.max": "max\n"}, 1000),  # of one above
        ("0::/a/b\n", {"a/memory.max": "900\n", "a/b/memory.max": "1000\n"}, 900),
        ("0::/not/mounted/here\n", {"memory.max": "1000\n"}, 1000),  # of a container
        ("3:cpu,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "1000\n"}, 1000),
        ("3:memory:/a\n", {"memory/a/memory.limit_in_bytes": f"{UNLIMITED}\n"}, None),
        ("2:cpu:/a\n", {"a/memory.max": "1000\n"}, None),
        ("0::/a\n", {}, None),
        ("", {"memory.max": "1000\n"}, None),
    ],
)
def test_the_limit_is_the_lowest_of_the_control_groups(
    own: str,
    files: dict[str, str],
    limit: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    assert machine.memory().limit == limit


@pytest.mark.parametrize(("limit", "free"), [(None, 50), (30, 30), (70, 50)])
def test_free_memory_ends_at_the_limit(limit: int | None, free: int) -> None:
    assert machine.Memory(100, 50, limit).free == free


def test_free_space_is_of_the_working_and_of_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def usage(folder: str) -> Any:
        asked.append(str(Path(folder).resolve()))
        return SimpleNamespace(free=len(asked))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: "/tmp")
    assert machine.disk() == machine.Disk(here=1, temporary=2)
    assert asked == [str(tmp_path), "/tmp"]


# --------------------------------------------------------------------------------------------- Hub


def test_a_login_is_told_by_its_origin_and_never_by_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert machine.hub().login is None
    Path(constants.HF_TOKEN_PATH).write_text(f" {TOKEN}\n")
    assert machine.hub().login == "hf auth login"
    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, TOKEN)
        assert machine.hub().login == "HF_TOKEN"
    assert TOKEN not in repr(machine.hub())
    monkeypatch.setenv("HF_OIDC_RESOURCE", "org/name")
    assert machine.hub().login == "HF_OIDC_RESOURCE"


def test_an_empty_token_is_no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(constants.HF_TOKEN_PATH).write_text("\n")
    monkeypatch.setenv("HF_TOKEN", " ")
    assert machine.hub().login is None


@pytest.mark.parametrize(
    ("endpoint", "shown", "is_default"),
    [
        ("https://huggingface.co", "https://huggingface.co", True),
        ("https://hf-mirror.com", "https://hf-mirror.com", False),
        (f"http://me:{TOKEN}@localhost:8080/hub?token={TOKEN}", "http://localhost:8080", False),
        (f"{TOKEN}@mirror/{TOKEN}", "mirror", False),
    ],
)
def test_another_endpoint_is_shown_without_what_is_secret_in_it(
    endpoint: str, shown: str, is_default: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    found = machine.hub()
    assert (found.endpoint, found.is_default_endpoint) == (shown, is_default)


def test_offline_and_xet_are_as_the_client_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(machine, "_version", lambda name: "1.8.0")
    assert (machine.hub().is_offline, machine.hub().uses_xet) == (False, True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert (machine.hub().is_offline, machine.hub().uses_xet) == (True, False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(machine, "_version", lambda name: None)
    assert machine.hub().uses_xet is False


# -------------------------------------------------------------------------------------------- CUDA


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with one NVIDIA device; the file has the version of its driver."""
    (tmp_path / "nvidiactl").write_text("")
    driver = tmp_path / "version"
    driver.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
        "GCC version:  gcc version 12.2.0\n"
    )
    monkeypatch.setattr(machine, "GPU_DEVICES", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setattr(machine, "NVIDIA_VERSIONS", (tmp_path / "none", driver))
    return driver


def torch_with(monkeypatch: pytest.MonkeyPatch, *, cuda: str | None, is_available: bool) -> None:
    """Put a torch in place that says so."""
    module = SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda, hip=None),
        cuda=SimpleNamespace(
            is_available=lambda: is_available,
            device_count=lambda: 1,
            get_device_properties=lambda number: PROPERTIES,
        ),
    )
    monkeypatch.setitem(sys.modules, "torch", module)  # type: ignore[arg-type]


def test_without_a_gpu_torch_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "GPU_DEVICES", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setattr(machine.importlib, "import_module", pytest.fail)
    assert machine.cuda() == machine.Cuda(False, "this machine has no GPU", None, None, [])


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_named_with_driver_capability_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_with(monkeypatch, cuda="13.0", is_available=True)
    device = machine.Gpu("NVIDIA H200", "9.0", 150_000_000_000)
    assert machine.cuda() == machine.Cuda(True, "", "570.86.15", "13.0", [device])


@pytest.mark.parametrize("text", ["550.54.15\n", "NVIDIA UNIX x86_64 Kernel Module  550.54.15  x"])
def test_the_driver_is_read_in_either_form(text: str, gpu: Path) -> None:
    gpu.write_text(text)
    assert machine._driver(gpu) == "550.54.15"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("runtime", "reason"),
    [(None, "torch 2.13.0 is built without it"), ("13.0", "torch finds no GPU that it can use")],
)
def test_a_gpu_that_torch_cannot_use_is_not_available_and_why(
    runtime: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_with(monkeypatch, cuda=runtime, is_available=False)
    assert machine.cuda() == machine.Cuda(False, reason, "570.86.15", runtime, [])


@pytest.mark.usefixtures("gpu")
def test_torch_that_is_broken_or_not_there_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(machine.importlib, "import_module", broken)
    assert machine.cuda().reason == (
        "torch cannot be imported: libcudart.so.13: cannot open shared object file"
    )
    monkeypatch.setattr(machine, "_version", lambda name: None)
    assert machine.cuda().reason == "torch is not installed"


@pytest.mark.parametrize(
    "address",
    ["", "huggingface.co", "ftp://x", "http://", "http://[x", "http://x:99999", "http://u:p@"],
)
def test_an_endpoint_that_is_no_address_is_told_without_repeating_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    for ask in (machine.require_endpoint, machine.hub):
        with pytest.raises(DstoolsError, match="HF_ENDPOINT is not the address") as error:
            ask()
        assert "u:p" not in str(error.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8080", "https://hub.example/hf/"])
def test_an_endpoint_that_is_an_address_is_taken(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    machine.require_endpoint()
