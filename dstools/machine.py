"""What this machine has: packages, CPU kernels, GPUs, memory, disk, a login to the Hub.

Versions come from the metadata of packages, without importing them. torch is imported only where
there is a GPU to ask for. Nothing here reads a token or reaches the network.
"""

import importlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from urllib.parse import urlsplit

from dstools_converters.errors import DISTRIBUTION, DstoolsError

PACKAGES = {  # name -> distributions that provide it
    "numpy": ("numpy",),
    "safetensors": ("safetensors",),
    "huggingface_hub": ("huggingface_hub",),
    "hf_xet": ("hf-xet",),
    "torch": ("torch",),
    "triton": ("triton", "pytorch-triton"),
    "transformers": ("transformers",),
    "accelerate": ("accelerate",),
    "datasets": ("datasets",),
    "peft": ("peft",),
    "trl": ("trl",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-genai": ("onnxruntime-genai", "onnxruntime-genai-cuda"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, and WSL
NVIDIA_VERSIONS = (Path("/sys/module/nvidia/version"), Path("/proc/driver/nvidia/version"))
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Gpu:
    """A device that torch can use."""

    name: str
    capability: str  # "9.0"; "" where the device has none
    memory_bytes: int


@dataclass(frozen=True)
class Cuda:
    """What torch can use; without a GPU, why not."""

    available: bool
    reason: str  # "" if available
    driver: str | None  # of NVIDIA's kernel module; None without it
    runtime: str | None  # the CUDA that torch was built with; None if torch was not asked
    devices: list[Gpu]


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes."""

    total: int
    available: int
    limit: int | None  # of the container, where it is lower than `total`

    @property
    def free(self) -> int:
        """Return what is available, the container's limit at most."""
        return min(self.available, self.limit or self.available)


@dataclass(frozen=True)
class Disk:
    """Free bytes of the disks that hold two folders."""

    here: int  # of the working folder
    temporary: int


@dataclass(frozen=True)
class Hub:
    """The settings of the Hub's client; the token itself is nowhere."""

    login: str | None  # "HF_TOKEN", "HF_OIDC_RESOURCE" or "hf auth login"
    endpoint: str  # without a user or password in it
    is_default_endpoint: bool
    is_offline: bool
    uses_xet: bool


def installed() -> dict[str, str | None]:
    """Return the version of each of PACKAGES, None of one that is not installed."""
    return {name: _first(map(_version, names)) for name, names in PACKAGES.items()}


def missing(extra: str) -> list[str]:
    """Return what an extra asks for and this Python lacks, as pip takes it; [] if it has all.

    An extra that the installed dstools does not know is missing as a whole.
    """
    from packaging.requirements import Requirement

    try:
        extras = metadata(DISTRIBUTION).get_all("Provides-Extra") or []
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        extras, lines = [], []
    if extra not in extras:
        return [f"{DISTRIBUTION}[{extra}]"]
    wanted = []
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found = _version(requirement.name)
            if found is None or not requirement.specifier.contains(found, prereleases=True):
                wanted.append(f"{requirement.name}{requirement.specifier}")
    return wanted


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _first(values: "map[str | None]") -> str | None:
    return next((value for value in values if value is not None), None)


def memory() -> Memory:
    """Return the main memory. Source: Linux, proc_meminfo(5), cgroup-v2.rst and v1/memory.rst."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    available = page * os.sysconf("SC_AVPHYS_PAGES")
    match = re.search(r"^MemAvailable: +(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    limits = [limit for limit in _limits() if limit < total]
    return Memory(total, int(match[1]) << 10 if match else available, min(limits, default=None))


def _limits() -> list[int]:
    """Return the memory limits of the control groups of this process, and of those above it."""
    limits = []
    for line in _text(OWN_CGROUPS).splitlines():
        _, controllers, inside = line.split(":", 2)
        if controllers == "":  # version 2
            root, name = CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / inside.lstrip("/")
        # in a container, the group is the root of what is mounted, and `inside` is not there
        for place in (folder, *folder.parents):
            text = _text(place / name).strip()
            if text.isdecimal():
                limits.append(int(text))
            if place == root:
                break
    return limits


def disk() -> Disk:
    """Return the free space of the working folder and of that for temporary files."""
    free = [shutil.disk_usage(folder).free for folder in (".", tempfile.gettempdir())]
    return Disk(*free)


def require_endpoint() -> None:
    """Raise DstoolsError where HF_ENDPOINT is no address; huggingface_hub then cannot be imported.

    Its value is not repeated: it may hold a password.
    """
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        message = "HF_ENDPOINT is not the address of a Hub"
        raise DstoolsError(message, "unset it, or name one, such as https://huggingface.co")


def hub() -> Hub:
    """Return the settings of the Hub's client, in its order of looking for a token.

    Raises DstoolsError where HF_ENDPOINT is no address.
    Source: huggingface_hub 2.4, utils/_auth.py (get_token) and constants.py.
    """
    require_endpoint()
    from huggingface_hub import constants

    login = None
    if os.environ.get("HF_OIDC_RESOURCE"):
        login = "HF_OIDC_RESOURCE"
    elif any(os.environ.get(name, "").strip() for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")):
        login = "HF_TOKEN"
    elif _text(Path(constants.HF_TOKEN_PATH)).strip():
        login = "hf auth login"
    scheme, _, rest = constants.ENDPOINT.rpartition("://")
    host = re.split(r"[/?#]", rest)[0].rpartition("@")[2]
    return Hub(
        login=login,
        endpoint=f"{scheme}://{host}" if scheme else host,
        is_default_endpoint=constants.ENDPOINT == constants._HF_DEFAULT_ENDPOINT,
        is_offline=constants.is_offline_mode(),
        uses_xet=_version("hf-xet") is not None and not constants.HF_HUB_DISABLE_XET,
    )


def cuda() -> Cuda:
    """Return what torch can use; it is imported only where there is a GPU, which takes seconds."""
    driver = next(filter(None, map(_driver, NVIDIA_VERSIONS)), None)
    if not any(Path(device).exists() for device in GPU_DEVICES):
        return Cuda(False, "this machine has no GPU", driver, None, [])
    if _version("torch") is None:
        return Cuda(False, "torch is not installed", driver, None, [])
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError, RuntimeError) as error:
        return Cuda(False, f"torch cannot be imported: {error}", driver, None, [])
    runtime = torch.version.cuda or torch.version.hip
    if runtime is None:
        return Cuda(False, f"torch {torch.__version__} is built without it", driver, None, [])
    if not torch.cuda.is_available():
        return Cuda(False, "torch finds no GPU that it can use", driver, runtime, [])
    devices = []
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        devices.append(Gpu(found.name, f"{found.major}.{found.minor}", found.total_memory))
    return Cuda(True, "", driver, runtime, devices)


def _driver(path: Path) -> str | None:
    """Return the version of NVIDIA's kernel module, as the module says it."""
    match = re.search(r"\b\d{3,}(\.\d+)+", _text(path).partition("\n")[0])
    return match[0] if match else None


def _text(path: Path) -> str:
    """Return the text of a small file, "" where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
