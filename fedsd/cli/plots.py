"""A run in five pictures: energy, clusters, ranks and β, loss, traffic; each has its numbers beside it as CSV."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedsd.cli.energy_plot import plot_energy
from fedsd.cli.figure import ALONE, INK, canvas, colours, headline, legend, markers, plain, save
from fedsd.cli.history import Event, History, natural, read_history
from fedsd.lowrank import Array
from fedsd.store import RunFolder

State = Mapping[str, Any]


def draw_plots(folder: RunFolder) -> list[Path]:
    """Draw every plot that the folder has data for, the most telling first, into plots/; returns the files."""
    history, files, plots = read_history(folder.events()), [], folder.path / "plots"
    latest = folder.latest_round()
    if latest is not None:
        state, adapters = folder.load_round(latest)
        if adapters["mix"]:  # energy is that of factors
            files.append(plot_energy(plots, state, adapters))
        files += [plot_clusters(plots, state), plot_ranks_beta(plots, state)]
    if history.trained:
        files += [plot_loss(plots, history), plot_traffic(plots, history)]
    return files


def plot_clusters(folder: Path, state: State) -> Path:
    """PCA of the clients' style embeddings z, coloured by cluster, and their cosines; a ring marks a cluster of one."""
    members = {key: sorted(entry["members"], key=natural) for key, entry in state["clusters"].items()}
    names = [name for key in sorted(members, key=int) for name in members[key]]
    cluster_of = {name: key for key, found in members.items() for name in found}
    z = np.array([state["clients"][name]["z"] for name in names], dtype=np.float64)
    points, share = _principal(z)
    cosine = z @ z.T / np.outer(np.linalg.norm(z, axis=1), np.linalg.norm(z, axis=1))
    figure = canvas(11.5, 5.2)
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    _scatter(left, members, dict(zip(names, points, strict=True)))
    plain(left, f"first direction, {share[0]:.0%} of the variance", f"second direction, {share[1]:.0%}", "PCA of z")
    left.set_aspect("equal", "datalim")
    left.margins(0.15)
    _cosines(right, cosine, names, [cluster_of[name] for name in names])
    figure.legend(loc="outside lower left", ncols=min(len(members), 4), frameon=False, fontsize=10)
    same = np.array([[cluster_of[a] == cluster_of[b] for b in names] for a in names])
    headline(figure, _clusters_title(state, cosine, same))
    rows = [
        (name, cluster_of[name], state["clients"][name]["n"], state["clients"][name]["rank"], *point, *row)
        for name, point, row in zip(names, points, cosine, strict=True)
    ]
    header = ("client", "cluster", "n", "rank", "pc1", "pc2", *(f"cosine {name}" for name in names))
    return save(figure, folder / "clusters.png", header, rows)


def _principal(z: Array) -> tuple[Array, Array]:
    """The first two principal coordinates (N, 2) and their shares of the variance (2,), zeros where there are fewer."""
    U, S, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
    U = U * np.sign(U[np.abs(U).argmax(0), np.arange(U.shape[1])] + 1e-300)
    points, share = np.zeros((len(z), 2)), np.zeros(2)
    k = min(2, len(S))
    points[:, :k] = (U * S)[:, :k]
    share[:k] = S[:k] ** 2 / max(float((S**2).sum()), 1e-300)
    return points, share


def _scatter(axes: Axes, members: Mapping[str, Sequence[str]], points: Mapping[str, Array]) -> None:
    shade, shape = colours(members), markers(members)
    for key in sorted(members, key=int):
        at = np.array([points[name] for name in members[key]])
        listed = ", ".join(members[key][:6]) + (f" +{len(members[key]) - 6}" if len(members[key]) > 6 else "")
        label = f"cluster {key}: {listed}"
        axes.scatter(
            at[:, 0], at[:, 1], s=110, color=shade[key], marker=shape[key], edgecolors="white", zorder=3, label=label
        )
        if len(members[key]) == 1:
            axes.scatter(at[:, 0], at[:, 1], s=380, facecolors="none", edgecolors=shade[key], linewidths=1.6, zorder=3)


def _cosines(axes: Axes, cosine: Array, names: Sequence[str], clusters: Sequence[str]) -> None:
    shade = colours(clusters)
    image = axes.imshow(cosine, cmap="cividis", vmax=1, vmin=min(0.0, float(cosine.min())))
    plain(axes, title="cosine of z, clients ordered by cluster")
    axes.grid(visible=False)
    if len(names) <= 40:
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 8 else 0)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(labelsize=10 if len(names) <= 16 else 7)
        for tick, key in zip([*axes.get_xticklabels(), *axes.get_yticklabels()], [*clusters] * 2, strict=True):
            tick.set_color(shade[key])
    if len(names) <= 12:
        for (i, j), value in np.ndenumerate(cosine):
            ink = "white" if value < 0.6 else INK
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=ink)
    axes.figure.colorbar(image, ax=axes, shrink=0.85)


def _clusters_title(state: State, cosine: Array, same: np.ndarray[Any, Any]) -> str:
    count = len(state["clusters"])
    title = f"{count} style cluster{'s' * (count != 1)}"
    inside, across = same & ~np.eye(len(same), dtype=bool), ~same
    if inside.any():
        title += f": cosine {cosine[inside].mean():.2f} within"
    if across.any():
        title += f"{',' if inside.any() else ':'} {cosine[across].mean():.2f} between"
    silhouette = state["silhouette"]
    return title if silhouette is None else f"{title}; silhouette {silhouette:.2f}"


def plot_ranks_beta(folder: Path, state: State) -> Path:
    """Each cluster's client ranks with their median, and its weight β in the mix."""
    clusters, clients = state["clusters"], state["clients"]
    keys = sorted(clusters, key=int)
    ranks = {key: [clients[name]["rank"] for name in clusters[key]["members"]] for key in keys}
    figure = canvas(10.5, 4.4)
    left, right = figure.subplots(1, 2)
    _ranks(left, clusters, ranks)
    _betas(right, clusters)
    for axes in (left, right):
        axes.set_xticks(range(len(keys)), [f"cluster {key}" for key in keys], rotation=90 if len(keys) > 6 else 0)
    headline(figure, _beta_title(clusters))
    rows = [
        (name, key, clients[name]["rank"], *(clusters[key][field] for field in ("rank", "beta", "d", "tau")))
        for key in keys
        for name in clusters[key]["members"]
    ]
    header = ("client", "cluster", "rank", "median_rank", "beta", "d", "tau")
    return save(figure, folder / "ranks_beta.png", header, rows)


def _beta_title(clusters: Mapping[str, Mapping[str, float]]) -> str:
    heaviest = max(clusters, key=lambda key: clusters[key]["beta"])
    if len(clusters) == 1:
        return f"One cluster: the mix is the adapter of cluster {heaviest}"
    return f"Cluster {heaviest} weighs most in the mix, β = {clusters[heaviest]['beta']:.2f}"


def _ranks(axes: Axes, clusters: Mapping[str, Mapping[str, Any]], ranks: Mapping[str, Sequence[int]]) -> None:
    shade = colours(clusters)
    for x, key in enumerate(ranks):
        spread = np.linspace(-0.22, 0.22, len(ranks[key])) if len(ranks[key]) > 1 else np.zeros(1)
        size = 70 if len(ranks) <= 6 else 24
        axes.scatter(x + spread, ranks[key], s=size, color=shade[key], edgecolors="white", zorder=3)
        axes.hlines(clusters[key]["rank"], x - 0.42, x + 0.42, color=INK, linewidth=2, zorder=2)
    axes.set_yscale("log", base=2)
    used = sorted({rank for found in ranks.values() for rank in found} | {entry["rank"] for entry in clusters.values()})
    axes.set_yticks(used, [str(rank) for rank in used])
    axes.minorticks_off()
    plain(axes, y="LoRA rank", title="ranks of the clients (dots), the cluster's rank (line)")


def _betas(axes: Axes, clusters: Mapping[str, Mapping[str, Any]]) -> None:
    shade, few = colours(clusters), len(clusters) <= 8
    for x, key in enumerate(sorted(clusters, key=int)):
        beta, d, tau = (clusters[key][field] for field in ("beta", "d", "tau"))
        axes.bar(x, beta, width=0.62, color=shade[key], zorder=2)
        words = f"{beta:.2f}\nd {d:.2g}\nτ {tau:.2g}" if few else f"{beta:.2f}"
        axes.annotate(words, (x, beta), (0, 4), textcoords="offset points", ha="center", fontsize=10, color=INK)
    plain(axes, y="β", title="weight in the mix" + ", with style distance d and trace τ" * few)
    axes.set_ylim(0, 1.35 * max(entry["beta"] for entry in clusters.values()))


def plot_loss(folder: Path, history: History) -> Path:
    """Each client's training loss, at the start and the end of every round."""
    line_of = {client: history.cluster_of.get(client, "") for client in sorted({c for _, c in history.trained})}
    shade, many = colours(history.cluster_of.values()), len(line_of) > 12
    figure = canvas(10.5, 4.4)
    axes = figure.subplots()
    for key in [k for k in ("", *sorted(shade, key=natural)) if k in set(line_of.values())]:
        lines = [_line(history, [client]) for client, own in line_of.items() if own == key]
        for x, y in lines:
            axes.plot(x, y, color=shade.get(key, ALONE), linewidth=0.7 if many else 1.6, alpha=0.4 if many else 0.85)
        x, y = _line(history, [client for client, own in line_of.items() if own == key]) if many else ([], [])
        axes.plot(x, y, color=shade.get(key, ALONE), linewidth=2.6, label=f"cluster {key}" if key else "dropped")
    plain(axes, "rounds completed", "training loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes, "thin: a client\nthick: their mean" if many else "one line a client")
    first, last = _mean_loss(history, min, "loss_first"), _mean_loss(history, max, "loss_last")
    headline(
        figure,
        f"The mean training loss {'falls' if last < first else 'goes'} from {first:.3f} to {last:.3f}",
        "The step at a whole round is what aggregation changed; a slope is local training.",
    )
    rows = [(*key, event["loss_first"], event["loss_last"]) for key, event in _by_client(history)]
    return save(figure, folder / "loss.png", ("round", "client", "cluster", "loss_first", "loss_last"), rows)


def _line(history: History, clients: Collection[str]) -> tuple[list[float], list[float]]:
    """Rounds completed and the mean loss of these clients, at the start and the end of each round."""
    x: list[float] = []
    y: list[float] = []
    for r in sorted({r for r, client in history.trained if client in clients}):
        sent = [event for (found, client), event in history.trained.items() if found == r and client in clients]
        x += [r - 1, r]
        y += [float(np.mean([event[field] for event in sent])) for field in ("loss_first", "loss_last")]
    return x, y


def _mean_loss(history: History, pick: Callable[[Iterable[int]], int], field: str) -> float:
    """The mean over the clients of the first or the last round."""
    wanted = pick(r for r, _ in history.trained)
    return float(np.mean([event[field] for (r, _), event in history.trained.items() if r == wanted]))


def plot_traffic(folder: Path, history: History) -> Path:
    """What the clients uploaded in each round, stacked by cluster."""
    figure = canvas(10.5, 4.2)
    axes = figure.subplots()
    total = _stack(axes, history)
    plain(axes, "round", "uploaded, MB")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.15 * max(*total.values(), 1e-6))
    legend(axes)
    clients = len({client for _, client in history.trained})
    headline(
        figure,
        f"{clients} clients uploaded {sum(total.values()):.3g} MB in {len(total)} rounds",
        "Payload of the adapters and embeddings that the server received; pictures never leave a client.",
    )
    fields = ("rank", "bytes", "seconds", "images_per_second")
    rows = [(*key, *(event[field] for field in fields)) for key, event in _by_client(history)]
    return save(figure, folder / "traffic.png", ("round", "client", "cluster", *fields), rows)


def _stack(axes: Axes, history: History) -> dict[int, float]:
    """Draw the bars; returns the megabytes of each round."""
    sent: dict[str, dict[int, float]] = {}
    for (server_round, _, key), event in _by_client(history):
        part = sent.setdefault(key, {})
        part[server_round] = part.get(server_round, 0.0) + event["bytes"] / 1e6
    shade, rounds = colours(history.cluster_of.values()) | {"": ALONE}, sorted({r for r, _ in history.trained})
    total = np.zeros(len(rounds))
    for key in sorted(sent, key=natural):
        part_of = np.array([sent[key].get(r, 0.0) for r in rounds])
        label = f"cluster {key}" if key else "dropped"
        axes.bar(rounds, part_of, bottom=total, width=0.62, color=shade[key], edgecolor="white", label=label)
        total += part_of
    for r, height in zip(rounds, total, strict=True):
        words = f"{height:.3g} MB" if len(rounds) <= 12 else f"{height:.2g}"
        axes.annotate(words, (r, height), (0, 4), textcoords="offset points", ha="center", fontsize=10, color=INK)
    return dict(zip(rounds, total.tolist(), strict=True))


def _by_client(history: History) -> list[tuple[tuple[int, str, str], Event]]:
    """((round, client, its cluster or ""), client.done), in order of round and client."""
    cluster_of = history.cluster_of
    found = sorted(history.trained.items(), key=lambda item: (item[0][0], natural(item[0][1])))
    return [((r, client, cluster_of.get(client, "")), event) for (r, client), event in found]
