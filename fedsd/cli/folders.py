"""`fedsd data check` on a terminal."""

from rich.console import Console
from rich.table import Table

from fedsd.data.check import Report


def show_report(found: Report) -> str:
    """Return what a folder holds and what is wrong with it, as tables."""
    console = Console(record=True, file=None, quiet=False, width=110)
    counts = Table(
        "style", "pictures", "classes", title=f"{found.root}: {found.pictures} pictures", title_justify="left"
    )
    for style, labels in sorted(found.styles.items()):
        named = ", ".join(f"{label} {n}" for label, n in sorted(labels.items(), key=lambda item: -item[1])[:6])
        counts.add_row(style, str(sum(labels.values())), named + (" …" if len(labels) > 6 else ""))
    problems = Table(
        "file", "problem", "how to mend it", title="Problems" if found.problems else "No problems", title_justify="left"
    )
    for problem in found.problems[:50]:
        problems.add_row(problem.file, f"{problem.severity}: {problem.what}", problem.remedy)
    with console.capture() as shown:
        console.print(counts)
        console.print("sizes     " + ", ".join(f"{n} of {size}" for size, n in found.sizes.items()))
        console.print("captions  " + ", ".join(f"{n} from {source}" for source, n in found.captions.items()))
        console.print(problems)
        if len(found.problems) > 50:
            console.print(f"… and {len(found.problems) - 50} more (--json lists all)")
    return shown.get()
