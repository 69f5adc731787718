from pathlib import Path

import pytest

from fedsd.cli.report import sections
from fedsd.cli.report.outcome import read_outcome
from fedsd.store import RunFolder

START = {"event": "run.start", "run": "ot<b>ter", "rounds": 3, "strategy": "style-clustered", "method": "lora"}


@pytest.fixture
def begun(tmp_path: Path) -> RunFolder:
    """A run that has failed in its first round, with hostile words in it."""
    folder = RunFolder.create(tmp_path / "run")
    folder.append_event(START)
    folder.append_event({"event": "round.start", "round": 1, "clients": ["c0"]})
    folder.append_event({"event": "client.failed", "round": 1, "client": "c0", "reason": "<img src=x onerror=y>"})
    folder.append_event({"event": "run.failed", "reason": "no <usable> reply"})
    return folder


def test_the_head_says_what_ran_and_how_it_ended(finished: RunFolder) -> None:
    html = sections.head(read_outcome(finished.path))
    assert '<h1>otter<span class="badge done">finished</span></h1>' in html
    assert "6 clients trained adapters (<code>lora</code>)" in html and "found 3 style clusters" in html
    for fact in ("<dd>2 of 2<", "<dd>6<small>1 failure</small>", "<dd>1:06<small>min:s</small>"):
        assert fact in html
    assert "The run failed" not in html and "cluster adapters" in html


def test_a_failed_run_says_why_and_nothing_of_it_is_taken_for_html(begun: RunFolder) -> None:
    run = read_outcome(begun.path)
    html = sections.head(run) + sections.clients(run)
    assert '<span class="badge failed">failed</span>' in html and "ot&lt;b&gt;ter" in html
    assert "<b>The run failed:</b> no &lt;usable&gt; reply" in html
    assert "<td>&lt;img src=x onerror=y&gt;</td>" in html and "<img" not in html
    assert "<dd>0 of 3<" in html and "<dd>–<small></small>" in html
    assert sections.clusters(run) == sections.last_grid(run) == sections.plots(run) == sections.usage(run) == ""


def test_a_run_that_is_under_way_or_has_converged(begun: RunFolder) -> None:
    begun.append_event(START)
    assert '<span class="badge running">not finished</span>' in sections.head(read_outcome(begun.path))
    begun.append_event({"event": "run.done", "rounds": 1, "converged": True})
    assert '<span class="badge done">converged</span>' in sections.head(read_outcome(begun.path))


def test_clusters_list_members_ranks_and_weights(finished: RunFolder) -> None:
    run = read_outcome(finished.path)
    html = sections.clusters(run)
    assert run.state
    for key, entry in run.state["clusters"].items():
        assert f"cluster {key}</th><td>{', '.join(entry['members'])}</td>" in html
        assert f'<td class="number">{entry["beta"]:.2f}</td>' in html
    assert "<td>16, 16</td>" in html and "median of its members" in html


def test_rounds_show_updates_failures_and_a_sheet_each(finished: RunFolder) -> None:
    html = sections.rounds(read_outcome(finished.path))
    assert html.count("<summary>Samples after round") == 2 == html.count("data:image/png")
    first = html[html.index("round 1</th>") :].split("</tr>")[0]
    assert first.startswith('round 1</th><td class="number">5</td><td class="number">1</td>')
    assert '<td class="number">–</td>' in first


def test_the_last_sheet_is_the_big_one(finished: RunFolder) -> None:
    html = sections.last_grid(read_outcome(finished.path))
    assert 'class="sheet"' in html and "Samples after round 2" in html


def test_long_runs_show_sheets_at_even_distances() -> None:
    assert sections.spread(range(1, 8)) == [1, 2, 3, 4, 5, 6, 7]
    assert sections.spread([5, 1, 3], at_most=2) == [1, 5]
    spread = sections.spread(range(1, 101))
    assert len(set(spread)) == 12 and (spread[0], spread[-1]) == (1, 100)


def test_clients_and_their_failures(finished: RunFolder) -> None:
    html = sections.clients(read_outcome(finished.path))
    row = html[html.index(">c0</th>") :].split("</tr>")[0]
    assert [part.split("<")[0] for part in row.split('<td class="number">')[1:]] == [
        "0", "4", "60", "0.300", "0.105", "31", "0.04 MB", "0",
    ]  # fmt: skip
    assert "lower train.lr &lt;script&gt;" in html and "No client failed" not in html


def test_settings_environment_and_metrics_are_folded_away(finished: RunFolder) -> None:
    html = sections.settings(read_outcome(finished.path))
    assert html.count("<details>") == 3
    assert '<th scope="row">lora.ranks</th><td>4,8,16</td>' in html and "<td>cpu (2)</td>" in html


def test_usage_names_every_adapter(finished: RunFolder) -> None:
    html = sections.usage(read_outcome(finished.path))
    assert "<code>loras/cluster-2</code>, <code>loras/mix</code>" in html
    assert "load_lora_weights(&#x27;loras/cluster-0&#x27;)" in html
