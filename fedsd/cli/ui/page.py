"""The page: what it shows, and what its buttons do. All that is computed is in `studio`."""

import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from fedsd.cli.picture import Picture, about_server, write_pictures
from fedsd.cli.report import sections
from fedsd.cli.report.outcome import read_outcome
from fedsd.cli.sampling import STEPS, grid_prompts, usual_settings
from fedsd.cli.ui import account
from fedsd.cli.ui.studio import BASE, FEDAVG, MOST_SHARE, Moment, Studio, Wish, choices
from fedsd.hybrid.protocol import LONGEST_PROMPT

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "base", "concurrency_limit": 1}
SHARPEST = 256  # pixels; smaller pictures are enlarged without smoothing
COLUMNS = ("Plain base", "FedAvg", "Chosen style, here alone", "Hybrid: server, then chosen style")


class Page:
    """The page of one studio. pictures: folder that finished PNGs are kept in while the page is served."""

    def __init__(self, studio: Studio, pictures: Path) -> None:
        self.studio, self.pictures = studio, pictures

    def blocks(self) -> gr.Blocks:
        """Return the page, for Gradio to serve."""
        with gr.Blocks(title="fedsd", analytics_enabled=False, fill_width=True) as page:
            gr.HTML(self._head(), elem_classes="head")
            with gr.Row(equal_height=False):
                with gr.Column():
                    prompt = gr.Textbox(
                        self._first_prompt(), label="Your prompt: stays on this machine", lines=2, elem_id="prompt"
                    )
                    found = choices(self.studio.run())
                    style = gr.Dropdown(found, value=found[0][1], label="Style", elem_id="style")
                with gr.Column():
                    same, generic, *shown = self._server_reads()
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=300):
                    inputs: list[Any] = [prompt, same, generic, style, *self._settings()]
                with gr.Column(scale=9), gr.Tabs():
                    with gr.Tab("Draw"):
                        self._draw_tab(prompt, inputs)
                    with gr.Tab("Compare"):
                        self._compare_tab(inputs)
                    with gr.Tab("Run") as tab:
                        run = gr.HTML(elem_classes="run")
                        tab.select(self.run_html, None, run, **QUIET)
            gr.on(
                [page.load, *(one.change for one in inputs if one is not generic), generic.input], self.reading,
                inputs, [generic, *shown], trigger_mode="always_last", queue=False, **QUIET,
            )  # fmt: skip
            page.load(lambda: gr.Dropdown(choices=choices(self.studio.run())), None, style, **QUIET)
        return page

    def _head(self) -> str:
        studio, remote = self.studio, self.studio.remote
        server = f"server {remote.url}" if remote else "no server"
        run = f"{studio.folder.path.name}, round {studio.number()}"
        return f"<h1>fedsd</h1><p>{escape(f'run {run} · {studio.base.size} pixels · {server}')}</p>"

    def _first_prompt(self) -> str:
        known = grid_prompts(self.studio.run(), 1)
        return known[0] if known else "a picture of a house"

    def _server_reads(self) -> tuple[gr.Checkbox, gr.Textbox, gr.HTML, gr.Code]:
        """Return whether the server reads the prompt itself, what it reads, a line about it, and the whole request."""
        served = self.studio.remote is not None
        generic = gr.Textbox(
            label="What the server reads", lines=2, max_length=LONGEST_PROMPT, elem_id="generic", interactive=False
        )
        same = gr.Checkbox(True, label="The same as my prompt", visible=served, elem_id="same", container=False)
        line = gr.HTML(elem_id="reading", padding=False)
        with gr.Accordion("The whole request", open=False, visible=served):
            request = gr.Code(language="json", show_label=False, elem_id="request")
        return same, generic, line, request

    def _settings(self) -> list[Any]:
        """Return the settings in the order of `wish`."""
        served = self.studio.remote is not None
        share = gr.Slider(
            0, MOST_SHARE, 0.3 if served else 0, step=0.05, label="Server's share of the steps", visible=served,
            elem_id="share",
        )  # fmt: skip
        mix = gr.Slider(0, 1.5, 1, step=0.05, label="Server: neutral adapter", visible=served, elem_id="mix")
        local = gr.Slider(0, 1.5, 1, step=0.05, label="This device: style", elem_id="local")
        seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed")
        with gr.Accordion("Steps and guidance", open=False):
            steps = gr.Slider(1, 100, STEPS, step=1, label="Steps", elem_id="steps")
            usual = usual_settings(self.studio.base).guidance
            guidance = gr.Slider(1, 15, usual, step=0.25, label="Guidance", elem_id="guidance")
        return [seed, steps, share, guidance, local, mix]

    def wish(self, prompt: str, same: bool, generic: str, *settings: Any) -> Wish:
        """Return what the inputs of the page say; ValueError for what cannot be."""
        style, seed, steps, share, guidance, local, mix = settings
        share = share if self.studio.remote else 0
        return Wish(style, prompt, prompt if same else generic, seed, steps, share, guidance, local, mix)

    def reading(self, *values: Any) -> tuple[Any, str, str]:
        """Return the text that the server would read, a line about it, and the whole request."""
        remote = self.studio.remote
        same = bool(values[1])
        try:
            wish = self.wish(*values)
            request = self.studio.request(wish) if remote and wish.share else ""
        except ValueError as error:
            return gr.skip(), account.note("refused", str(error)), ""
        word = self.studio.private_word(wish.generic)
        line = account.reading(wish.generic, wish.share, remote, word)
        shown = "" if remote is None or (same and wish.share == 0) else wish.generic
        text = gr.Textbox(value=shown, interactive=False) if same else gr.Textbox(interactive=True)
        return text, line, "" if word else request

    def _draw_tab(self, prompt: gr.Textbox, inputs: list[Any]) -> None:
        with gr.Row(equal_height=False):
            with gr.Column():
                picture = self._picture("Picture", "picture", 400)
            with gr.Column():
                button, stop = self._buttons("Draw")
                progress = gr.HTML(elem_id="progress", padding=False)
                figures = gr.HTML(elem_id="figures", padding=False)
        drawing = gr.on(
            [button.click, prompt.submit], self.draw, inputs, [picture, progress, figures], **ONE_AT_A_TIME, **QUIET
        )
        stop.click(self.stopped, None, progress, cancels=drawing, queue=False, **QUIET)

    def _compare_tab(self, inputs: list[Any]) -> None:
        button, stop = self._buttons("Compare")
        progress = gr.HTML(elem_id="compared", padding=False)
        pictures = []
        for row in (COLUMNS[:2], COLUMNS[2:]):
            with gr.Row():
                pictures += [self._picture(title, f"column-{COLUMNS.index(title)}", 340) for title in row]
        comparing = button.click(self.compare, inputs, [*pictures, progress], **ONE_AT_A_TIME, **QUIET)
        stop.click(self.stopped, None, progress, cancels=comparing, queue=False, **QUIET)

    @staticmethod
    def _buttons(name: str) -> tuple[gr.Button, gr.Button]:
        with gr.Row():
            return gr.Button(name, variant="primary", elem_id=name.lower(), scale=3), gr.Button("Stop", min_width=80)

    def _picture(self, label: str, name: str, height: int) -> gr.Image:
        kind = ["drawn", "pixels"] if self.studio.base.size < SHARPEST else ["drawn"]
        return gr.Image(
            label=label,
            elem_id=name,
            elem_classes=kind,
            height=height,
            buttons=["download", "fullscreen"],
            interactive=False,
            format="png",
        )

    @staticmethod
    def stopped() -> str:
        """Return what is said once nobody waits for the picture any more."""
        return account.note("alone", "Stopped.")

    def draw(self, *values: Any) -> Iterator[tuple[Any, str, Any]]:
        """Draw one picture; yields picture, progress and figures as they come."""
        begun = time.monotonic()
        try:
            wish = self._granted(values)
            for moment in self.studio.draw(wish):
                words = account.progress(moment, wish, self.studio.remote, time.monotonic() - begun)
                figures = account.figures(moment.drawn, bool(moment.why)) if moment.drawn else ""
                yield self._shown(moment, wish), words, figures
        except ValueError as error:
            yield gr.skip(), account.note("refused", str(error)), ""

    def compare(self, *values: Any) -> Iterator[list[Any]]:
        """Draw by the base, FedAvg, the chosen adapter, and the server and it; yields the pictures and the progress."""
        begun, shown = time.monotonic(), [None] * len(COLUMNS)
        try:
            wish = self._granted(values)
            for column, (adapter, ask) in enumerate(
                ((BASE, False), (FEDAVG, False), (wish.adapter, False), (wish.adapter, True))
            ):
                one = Wish(**{**vars(wish), "adapter": adapter})
                for moment in self.studio.draw(one, ask=ask):
                    shown[column] = self._shown(moment, one)
                    remote = self.studio.remote if ask else None
                    words = account.progress(moment, one, remote, time.monotonic() - begun)
                    yield [*shown, account.column(column, COLUMNS[column]) + words]
        except ValueError as error:
            yield [*shown, account.note("refused", str(error))]

    def _granted(self, values: tuple[Any, ...]) -> Wish:
        """Return the wish; ValueError when the server would read a private word."""
        wish = self.wish(*values)
        word = self.studio.private_word(wish.generic)
        if wish.share and word is not None:
            raise ValueError(account.refusal(word))
        return wish

    def _shown(self, moment: Moment, wish: Wish) -> Any:
        """Return a picture to show: an array while it is drawn, in the end a PNG that says how it was made."""
        if moment.latents is None:
            return gr.skip()
        picture = self.studio.picture(moment.latents)
        return picture if moment.drawn is None else str(self._saved(picture, moment, wish))

    def _saved(self, picture: np.ndarray, moment: Moment, wish: Wish) -> Path:
        assert moment.drawn is not None
        name = wish.adapter.replace("/", "-") or "base"
        out = self.pictures / f"{name}-{wish.seed}-{time.time_ns() // 10**6}.png"
        about = about_server(wish.drawing, [moment.drawn])
        lora = self.studio.adapter_file(wish.adapter)
        base = self.studio.config.base.name
        made = Picture(wish.prompt, lora, base, 1, wish.steps, wish.guidance, wish.seed, wish.local_scale)
        return write_pictures(out, picture[None], made, about)

    def run_html(self) -> str:
        """Return the run as it is now: its numbers, its last sheet of samples, its clusters and its plots."""
        run = read_outcome(self.studio.folder.path)
        missing = "" if run.grids else account.note(
            "plain", f"No sample grids and plots yet; draw them with: fedsd report {run.path}"
        )  # fmt: skip
        parts = (sections.facts(run), missing, sections.last_grid(run), sections.clusters(run), sections.plots(run))
        return "".join(parts)
