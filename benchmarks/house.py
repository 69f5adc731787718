"""How long the two commands of the README take after installation: `make demo` and `make test`, from a clean clone.

    python benchmarks/house.py demo|test [--clone DIR]

DIR is a clone that is installed already; without it one is made. A command that fails is not recorded.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from points import record

TARGETS = {"demo": "<= 360", "test": "<= 900"}


def main() -> None:
    """Install, time the target, and keep the point."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("target", choices=sorted(TARGETS))
    args.add_argument("--clone", type=Path)
    opts = args.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = opts.clone or Path(folder) / "fedsd"
        if not clone.exists():
            subprocess.run(["git", "clone", "-q", Path(__file__).resolve().parents[1], clone], check=True)
        subprocess.run(["make", "install"], cwd=clone, check=True)
        begun = time.monotonic()
        subprocess.run(["make", opts.target], cwd=clone, check=True)
        seconds = time.monotonic() - begun
    command = f"python benchmarks/house.py {opts.target}"
    record(f"{opts.target}.seconds", seconds, TARGETS[opts.target], command=command, seconds=seconds)


if __name__ == "__main__":
    main()
