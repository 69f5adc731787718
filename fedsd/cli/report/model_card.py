"""README.md of a run folder: a model card, as hubs of models read it."""

import json
from pathlib import Path

from fedsd.cli.history import natural
from fedsd.cli.report.outcome import Outcome, version
from fedsd.cli.report.scores import NAMES
from fedsd.cli.report.usage import diffusers_lines

TAGS = ("text-to-image", "stable-diffusion", "lora", "diffusers", "template:sd-lora", "federated-learning")
LIMITS = """## Limits

- An adapter has learned what its cluster's pictures show, with their gaps and their licences.
- Updates were protected by differential privacy or secure aggregation only where `run.toml` says so.
"""


def model_card(run: Outcome) -> str:
    """Return README.md: what the adapters are, how to use them, how they score, and what they do not do."""
    history = run.history
    front = {"base_model": run.base, "library_name": "diffusers", "tags": TAGS}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", "", f"# {run.name}", ""]
    lines += [
        f"Style adapters for `{Path(run.base).name}`, trained on {len(history.clients)} devices in "
        f"{len(history.rounds)} rounds by `{history.strategy}` (fedsd {version()}). No picture left its device. "
        "Details: `report.html`.",
        "",
    ]
    if run.grids:
        lines += [f"![samples of every adapter](grids/{run.grids[max(run.grids)].name})", ""]
    return "\n".join([*lines, *_card_clusters(run), *_card_usage(run), *_card_scores(run), LIMITS])


def _card_clusters(run: Outcome) -> list[str]:
    if run.state is None:
        return ["No round was completed, so there is no adapter yet.", ""]
    rows = []
    for key, entry in sorted(run.state["clusters"].items(), key=lambda item: int(item[0])):
        members = ", ".join(sorted(entry["members"], key=natural))
        rows.append(f"| `loras/cluster-{key}` | {members} | {entry['n']} | {entry['rank']} | {entry['beta']:.2f} |")
    both = "`loras/mix`: all styles, weighted by β. `loras/neutral`: their common part, for the early steps."
    return ["| adapter | devices | images | rank | β |", "|---|---|---|---|---|", *rows, "", both, ""]


def _card_usage(run: Outcome) -> list[str]:
    if not run.loras:
        return []
    return ["## Use", "", "```python", diffusers_lines(run.base, run.loras[0], "a picture of a house"), "```", ""]


def _card_scores(run: Outcome) -> list[str]:
    if run.scores is None:
        return []
    scores = run.scores
    lines = ["## Scores", "", f"KID × 1000 (extractor `{Path(scores.extractor).name}`), lower is better.", ""]
    lines += [f"| method | {' | '.join(scores.styles)} |", "|---" * (len(scores.styles) + 1) + "|"]
    for method in scores.methods:
        values = [scores.column("kid", style).get(method) for style in scores.styles]
        shown = " | ".join("–" if value is None else f"{1000 * value:.1f}" for value in values)
        lines.append(f"| {NAMES.get(method, method)} | {shown} |")
    return [*lines, ""]
