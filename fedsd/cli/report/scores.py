"""The evaluation in report.html: one sentence, and a table for each metric."""

from html import escape
from pathlib import Path

from fedsd.cli.report.elements import number, row_title, table
from fedsd.cli.report.outcome import Scores

METRICS = {
    "kid": ("KID × 1000", 1000.0, "lower is closer to the real pictures of the style"),
    "fid": ("FID", 1.0, "lower is closer; biased when pictures are few: then trust KID"),
    "clip_score": ("CLIP score", 1.0, "higher follows the prompt better, 0 to 100"),
}
NAMES = {
    "base": "base alone",
    "local": "local only",
    "fedavg": "FedAvg",
    "fedgeomed": "FedGeoMed",
    "flora": "FLoRA",
    "cluster": "cluster adapters",
    "mix": "mix",
    "neutral": "neutral",
}


def verdict(scores: Scores | None) -> str:
    """One sentence on the evaluation, where there is one."""
    mean = scores.mean("kid") if scores else {}
    if scores is None or "cluster" not in mean or len(mean) < 2:
        return ""
    others = ", ".join(
        f"{NAMES.get(m, escape(m))} {1000 * mean[m]:.1f}" for m in scores.methods if m in mean and m != "cluster"
    )
    styles = f"{len(scores.styles)} styles" if len(scores.styles) > 1 else "one style"
    return f"<p>KID × 1000 over {styles}: <b>cluster adapters {1000 * mean['cluster']:.1f}</b>, {others}.</p>"


def evaluation(scores: Scores | None) -> str:
    """A table for each metric, methods by styles, the best of each column marked."""
    if scores is None:
        return ""
    intro = (
        f'<h2>Evaluation</h2><p class="soft">{_counts(scores)} generated pictures for each method and style. '
        f"Extractor of KID and FID: <code>{escape(Path(scores.extractor).name)}</code>; compare them only with figures "
        "by the same one. ★ marks the best of a column.</p>"
    )
    shown = [metric for metric in METRICS if any(scores.column(metric, style) for style in scores.styles)]
    return intro + f'<div class="beside">{"".join(_metric(scores, metric) for metric in shown)}</div>'


def _counts(scores: Scores) -> str:
    found = sorted({cell["n"] for styles in scores.cells.values() for cell in styles.values() if "n" in cell})
    if not found:
        return "An unknown number of"
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def _metric(scores: Scores, metric: str) -> str:
    name, factor, note = METRICS[metric]
    columns = {style: scores.column(metric, style) for style in scores.styles}
    if len(columns) > 1:
        columns["mean"] = scores.mean(metric)
    best = {style: scores.best(metric, column) if len(column) > 1 else set() for style, column in columns.items()}
    rows = []
    for method in scores.methods:
        row = [row_title(NAMES.get(method, method))]
        for style, column in columns.items():
            shown = f"{factor * column[method]:.1f}" if method in column else "–"
            row.append(number(shown, best=method in best[style]))
        rows.append(row)
    titles = ("", *(f"#{style}" for style in columns))
    return f"<div><h3>{name}<small>{note}</small></h3>{table(titles, rows, marked=True)}</div>"
