"""What the page says of a drawing, as HTML: the bar of steps, what is going on in plain words, and the figures."""

from html import escape

from fedsd.cli.report.elements import megabytes
from fedsd.cli.ui.studio import Moment, Wish
from fedsd.hybrid.client import Drawn, Remote

CACHE = {
    "hit": ("hit", "kept from an earlier request"),
    "joined": ("shared", "with somebody who asked the same"),
    "miss": ("miss", "computed for this request"),
}


def progress(moment: Moment, wish: Wish, remote: Remote | None, seconds: float) -> str:
    """Return the bar and the sentence below it; seconds: since the button was pressed."""
    kind, words = _sentence(moment, wish, remote, seconds)
    return bar(moment, wish) + note(kind, words)


def column(number: int, title: str) -> str:
    """Return which of the four pictures to compare is being drawn."""
    return f"<p>Picture {number + 1} of 4: {escape(title)}</p>"


def bar(moment: Moment, wish: Wish) -> str:
    """Return a cell for each step in the colour of whoever makes it, filled once it is made."""
    planned = wish.server_steps if moment.by_server is None else moment.by_server
    cells = []
    for step in range(wish.steps):
        who = "server" if step < planned else "device"
        state = "done" if step < moment.done else "asked" if step < planned and moment.by_server is None else ""
        cells.append(f'<i class="{who} {state}"></i>')
    legend = '<span class="server">server</span><span class="device">this device</span>' if planned else (
        '<span class="device">this device</span>'
    )  # fmt: skip
    label = f"{moment.done} of {wish.steps} steps"
    return f'<div class="bar" role="img" aria-label="{label}">{"".join(cells)}</div><div class="legend">{legend}</div>'


def note(kind: str, words: str) -> str:
    """Return a box of words; kind: "busy", "good", "alone" or "refused"."""
    return f'<div class="note {kind}" role="status">{escape(words)}</div>'


def _sentence(moment: Moment, wish: Wish, remote: Remote | None, seconds: float) -> tuple[str, str]:
    server, steps = wish.server_steps, wish.steps
    if moment.by_server is None and remote is not None:
        return "busy", (
            f"Asking {remote.url} for {_steps(1, server)}: {seconds:.0f} s. After {remote.timeout:g} s this device "
            "draws them itself."
        )
    if moment.drawn is None:
        begun = f"The server drew {_steps(1, server)}. " if moment.by_server else _alone(moment.why)
        return "alone" if moment.why else "busy", f"{begun}This device draws step {moment.done + 1} of {steps}."
    if moment.by_server:
        return "good", f"Done. The server drew {_steps(1, server)}, this device {_steps(server + 1, steps)}."
    if moment.why:
        return "alone", f"Done. {_alone(moment.why)}This device drew all {steps} steps."
    return "good", f"Done. This device drew all {steps} steps; no server was asked."


def _alone(why: str) -> str:
    return f"Without the server: {why}. " if why else ""


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def figures(drawn: Drawn, asked: bool) -> str:
    """Return what the picture cost, as cards; asked: whether a server was."""
    cards = _served(drawn) if drawn.told else {"server": (_time(drawn.waited), "waited in vain")}
    if drawn.told is None and not asked:
        cards = {}
    cards["this device"] = (_time(drawn.computed), "text, late steps" if drawn.told else "all steps")
    body = "".join(f"<div><dt>{n}</dt><dd>{v}<small>{about}</small></dd></div>" for n, (v, about) in cards.items())
    return f'<dl class="figures">{body}</dl>'


def _served(drawn: Drawn) -> dict[str, tuple[str, str]]:
    told = drawn.told
    assert told is not None
    queue, compute = told.ms_queue / 1000, told.ms_compute / 1000
    if told.cache == "hit":
        queue, compute, made = 0.0, 0.0, f"{_time(compute)} when it was made"
    else:
        made = f"{told.batch} picture{'s' * (told.batch != 1)} in the run"
    network = "–" if told.cache == "joined" else _time(max(0.0, drawn.waited - queue - compute))
    return {
        "cache": CACHE[told.cache], "queue": (_time(queue), "on the server"), "server": (_time(compute), made),
        "network": (network, "and packing"),
        "bytes": (_bytes(drawn.sent + drawn.received), f"{_bytes(drawn.sent)} up, {_bytes(drawn.received)} down"),
    }  # fmt: skip


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _bytes(count: int) -> str:
    return f"{count} B" if count < 10_000 else f"{count / 1000:.1f} kB" if count < 10**6 else megabytes(count)


def reading(text: str, share: float, remote: Remote | None, word: str | None) -> str:
    """Return a line about what the server reads: nothing, these words, or none because one of them is private."""
    if remote is None:
        return note("plain", "No server was named (fedsd ui --server URL): nothing leaves this machine.")
    if share == 0:
        return note("plain", "The server's share is 0: it is not asked, and reads nothing.")
    if word is not None:
        return note("refused", refusal(word))
    return note(
        "plain", f"The server reads these {len(text)} characters and the numbers of the whole request, nothing else."
    )


def refusal(word: str) -> str:
    """Return why a request is not sent."""
    return (
        f'Refused: "{word}" is a private word and never leaves this machine. Take it out of what the server reads, or '
        "set the server's share to 0. Nothing was sent."
    )
