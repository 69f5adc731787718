"""`fedsd doctor`: is this machine fit to run, and how to mend it if not."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found, whether that is good, and the remedy if not."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Return all checks, in the order in which they matter."""
    return [_guarded(name, check) for name, check in CHECKS.items()]


def table(checks: list[Check]) -> str:
    """Return the checks as a table with a remedy for each fault."""
    console = Console(width=110)
    rows = Table("", "check", "found", "how to mend it")
    for check in checks:
        rows.add_row("ok" if check.ok else "NO", check.name, check.found, check.remedy)
    with console.capture() as shown:
        console.print(rows)
    return shown.get()


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # a broken package may fail at import in any way
        return Check(name, False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200],
                     "reinstall: pip install -c constraints.txt fedsd")  # fmt: skip


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, sys.version.split()[0], "" if ok else "use Python 3.11 or newer")


def _torch() -> Check:
    import torch
    import torchvision

    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # fails when the two were not built for each other
    return Check("torch and torchvision", True, f"{torch.__version__}, {torchvision.__version__}")


def _packages() -> Check:
    import diffusers  # noqa: F401
    import open_clip  # noqa: F401
    import peft  # noqa: F401

    names = ("flwr", "ray", "diffusers", "transformers", "peft", "open_clip_torch")
    return Check("packages", True, ", ".join(f"{name} {metadata.version(name)}" for name in names))


def _programs() -> Check:
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    lost = [name for name in ("flwr", "flower-superlink") if shutil.which(name, path=here) is None]
    return Check("Flower's programs", not lost, "found" if not lost else f"{', '.join(lost)} not found",
                 "" if not lost else 'pip install "flwr[simulation]"')  # fmt: skip


def _weights() -> Check:
    from fedsd.base import load

    base = load.load("tiny")
    return Check("embedded base", True, f"{base.size}x{base.size}, sha {base.sha[:12]}, clip {load.load_clip().dim}-d")


def _device() -> Check:
    import torch

    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("device", True, ", ".join(found) or f"no GPU; {os.cpu_count()} processor cores")


def _port() -> Check:
    from fedsd.cli.run import free_port

    return Check("loopback port", True, f"{free_port()} is free")


def _disk() -> Check:
    free = shutil.disk_usage(".").free / 2**30
    return Check("disk", free > 1, f"{free:.0f} GiB free here", "" if free > 1 else "free at least 1 GiB")


CHECKS: dict[str, Callable[[], Check]] = {
    "python": _python, "torch and torchvision": _torch, "packages": _packages, "Flower's programs": _programs,
    "embedded base": _weights, "device": _device, "loopback port": _port, "disk": _disk,
}  # fmt: skip
