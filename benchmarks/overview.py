"""Write the table of all points into docs/results/README.md: the last line of each id in points.jsonl.

python benchmarks/overview.py
"""

import json
from collections.abc import Mapping
from typing import Any

from points import FILE
from section import table, write_section


def latest() -> dict[str, Mapping[str, Any]]:
    """Return the line that counts of each id, in the ids' order."""
    lines = map(json.loads, FILE.read_text(encoding="utf-8").splitlines())
    return dict(sorted({line["id"]: line for line in lines}.items()))


def overview() -> str:
    """Return the section as Markdown."""
    found = latest()
    rows = [
        (name, f"{one['value']:.4g}", one["target"], "holds" if one["holds"] else "**missed**", f"`{one['command']}`")
        for name, one in found.items()
    ]
    held = sum(one["holds"] for one in found.values())
    return (
        f"## All points\n\n{held} of {len(found)} targets hold. Made by `python benchmarks/overview.py`.\n\n"
        + table(("point", "measured", "target", "", "command"), rows)
    )


if __name__ == "__main__":
    print(write_section("README.md", "# Results", "points", overview()))
