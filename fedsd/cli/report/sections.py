"""The parts of report.html, each from an `Outcome` to HTML. Whatever comes from a run is escaped."""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from fedsd.cli.figure import colours
from fedsd.cli.history import History, natural
from fedsd.cli.report.elements import cell, figure, folded, megabytes, number, pairs, row_title, table
from fedsd.cli.report.outcome import Outcome
from fedsd.cli.report.scores import verdict
from fedsd.cli.report.usage import diffusers_lines
from fedsd.cli.watch import clock

STATUS = {"done": "finished", "failed": "failed", "running": "not finished", "waiting": "not started"}
PLOT_NOTES = {
    "energy": "Feature energy of the adapters by depth (Fig. 2 of arXiv 2508.04745).",
    "clusters": "Style embeddings of the clients; a ring marks a cluster of one.",
    "ranks_beta": "Ranks of the clients and weights of the clusters in the mix.",
    "loss": "Training loss of the clients.",
    "traffic": "What the clients uploaded.",
}


def head(run: Outcome) -> str:
    """What ran, how it ended, and its numbers."""
    history, base = run.history, escape(Path(run.base).name)
    status = "converged" if history.converged else STATUS[history.status]
    count = len(run.state["clusters"]) if run.state else 0
    grouped = f" The server found {count} style cluster{'s' * (count != 1)}." if count else ""
    failed = ""
    if history.status == "failed":
        failed = f'<p class="alert"><b>The run failed:</b> {escape(history.reason)}</p>'
    return (
        f'<h1>{escape(run.name)}<span class="badge {history.status}">{status}</span></h1>'
        f'<p class="soft">{len(history.clients)} clients trained adapters (<code>{escape(history.method)}</code>) for '
        f"the base <code>{base}</code>, combined by <code>{escape(history.strategy)}</code>.{grouped}</p>"
        f"{failed}{facts(run)}{verdict(run.scores)}"
    )


def facts(run: Outcome) -> str:
    """The run in six numbers, each with a remark."""
    history = run.history
    losses = [event["loss"] for _, event in sorted(history.rounds.items())]
    failed, sent = len(history.failures), len(history.trained)
    silhouette = run.state["silhouette"] if run.state else None
    cards = {
        "rounds": (f"{len(history.rounds)} of {history.planned}", ""),
        "clients": (str(len(history.clients)), f"{failed or 'no'} failure{'s' * (failed != 1)}"),
        "style clusters": (
            str(len(run.state["clusters"])) if run.state else "–",
            "" if silhouette is None else f"silhouette {silhouette:.2f}",
        ),
        "mean loss": (
            f"{losses[-1]:.3f}" if losses else "–",
            f"{losses[0]:.3f} after round 1" if len(losses) > 1 else "",
        ),
        "training time": (clock(history.seconds), "h:min:s" if history.seconds >= 3600 else "min:s"),
        "uploaded": (megabytes(history.uploaded), f"{megabytes(history.uploaded / sent)} a message" if sent else ""),
    }
    body = "".join(f"<div><dt>{name}</dt><dd>{v}<small>{note}</small></dd></div>" for name, (v, note) in cards.items())
    return f'<dl class="facts">{body}</dl>'


def last_grid(run: Outcome) -> str:
    """The sheet of the last sampled round, as large as the page."""
    if not run.grids:
        return ""
    last = max(run.grids)
    note = f"Samples after round {last}: one row for each adapter; prompts and seeds are the same in every row."
    return figure(run.grids[last], note, sheet=True)


def clusters(run: Outcome) -> str:
    """The clusters: members, rank, weight."""
    if run.state is None:
        return ""
    found, clients, shade = run.state["clusters"], run.state["clients"], colours(run.state["clusters"])
    rows = []
    for key, entry in sorted(found.items(), key=lambda item: int(item[0])):
        members = sorted(entry["members"], key=natural)
        rows.append([row_title(f"cluster {key}", shade[key]), cell(", ".join(members)), number(entry["n"])])
        rows[-1] += [cell(", ".join(str(clients[name]["rank"]) for name in members)), number(entry["rank"])]
        rows[-1] += [number(f"{entry['beta']:.2f}"), number(f"{entry['d']:.3f}"), number(f"{entry['tau']:.3g}")]
    columns = ("", "members", "#images", "their ranks", "#rank", "#β", "#d", "#τ")
    lost = run.state["neutral_discarded_energy"]
    note = (
        "rank: of the cluster's adapter, the median of its members'. β: its weight in the mix. d: distance of its "
        "style from the centre. τ: its mean singular value. "
        f"The neutral adapter left out {lost:.1%} of the energy at its rank cap."
    )
    return f'<h2>Style clusters</h2>{table(columns, rows)}<p class="soft">{note}</p>'


def plots(run: Outcome) -> str:
    """Every plot of the run."""
    if not run.plots:
        return ""
    return "<h2>Plots</h2>" + "".join(
        figure(file, f"{PLOT_NOTES.get(name, name)} Numbers: plots/{name}.csv") for name, file in run.plots.items()
    )


def rounds(run: Outcome) -> str:
    """The rounds as a table, and the sheet of each, or of some spread over a long run."""
    if not run.history.rounds and not run.grids:
        return ""
    columns = ("", "#updates", "#failures", "#loss", "#change of the mix", "#time", "#uploaded")
    rows = [_round(run.history, server_round) for server_round in sorted(run.history.rounds)]
    sheets = "".join(
        folded(f"Samples after round {r}", figure(run.grids[r], "", sheet=True)) for r in spread(run.grids)
    )
    return f"<h2>Rounds</h2>{table(columns, rows)}{sheets}"


def spread(numbers: Iterable[int], at_most: int = 12) -> list[int]:
    """Return all of the numbers, or `at_most` of them at even distances with the first and the last."""
    listed = sorted(numbers)
    if len(listed) <= at_most:
        return listed
    return [listed[round(i * (len(listed) - 1) / (at_most - 1))] for i in range(at_most)]


def _round(history: History, server_round: int) -> list[str]:
    event = history.rounds[server_round]
    sent = [done["bytes"] for (found, _), done in history.trained.items() if found == server_round]
    failed = sum(found == server_round for found, _ in history.failures)
    change = "–" if event["change"] is None else f"{event['change']:.3f}"
    cells = [len(sent), failed, f"{event['loss']:.4f}", change, clock(event["seconds"]), megabytes(sum(sent))]
    return [row_title(f"round {server_round}"), *(number(value) for value in cells)]


def clients(run: Outcome) -> str:
    """Each client with its losses, and below them what failed and why."""
    if not run.history.clients:
        return ""
    columns = ("", "#cluster", "#rank", "#images", "#first loss", "#last loss", "#images/s", "#uploaded", "#failures")
    rows = [_client(run.history, client) for client in run.history.clients]
    return "<h2>Clients</h2>" + table(columns, rows) + failures(run)


def _client(history: History, client: str) -> list[str]:
    sent = [event for (_, name), event in sorted(history.trained.items()) if name == client]
    about = history.profiles.get(client) or (sent[-1] if sent else {})
    values: list[object] = [history.cluster_of.get(client, "–"), about.get("rank", "–"), about.get("n", "–")]
    if sent:
        speed = f"{sent[-1]['images_per_second']:.0f}"
        values += [f"{sent[0]['loss_first']:.3f}", f"{sent[-1]['loss_last']:.3f}", speed]
    else:
        values += ["–"] * 3
    values += [megabytes(sum(event["bytes"] for event in sent)), sum(name == client for _, name in history.failures)]
    return [row_title(client), *(number(value) for value in values)]


def failures(run: Outcome) -> str:
    """Which client failed when, and why."""
    if not run.history.failures:
        return '<p class="soft">No client failed.</p>'
    found = sorted(run.history.failures.items(), key=lambda item: (natural(item[0][1]), item[0][0]))
    rows = [[row_title(client), number(r), cell(event["reason"])] for (r, client), event in found]
    return "<h3>Failures</h3>" + table(("client", "#round", "reason"), rows)


def usage(run: Outcome) -> str:
    """How to draw with the adapters."""
    if not run.loras:
        return ""
    lines = diffusers_lines(run.base, run.loras[0], "a picture of a house")
    listed = ", ".join(f"<code>loras/{escape(name)}</code>" for name in run.loras)
    return f"<h2>Use the adapters</h2><p>{listed}. In the run folder:</p><pre>{escape(lines)}</pre>"


def settings(run: Outcome) -> str:
    """Settings, environment and metrics.csv, folded away."""
    parts = [
        folded("Settings (run.toml)", table(("setting", "value"), pairs(run.settings))) if run.settings else "",
        folded("Environment (env.json)", table(("", ""), pairs(run.env))) if run.env else "",
    ]
    if run.metrics:
        rows = [[cell(value) for value in row] for row in run.metrics[1:]]
        parts.append(folded("metrics.csv", table(run.metrics[0], rows)))
    return "<h2>How it was run</h2>" + "".join(parts) if any(parts) else ""
