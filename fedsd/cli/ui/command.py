"""`fedsd ui`: serve the page to this machine, and to nobody else."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fedsd.base import load
from fedsd.cli.run_config import read_config
from fedsd.cli.ui.studio import Studio
from fedsd.cli.ui.style import CSS
from fedsd.hybrid.client import Remote
from fedsd.hybrid.local import Address, serve_local

HERE = "127.0.0.1"
SYSTEM_FONTS = ("system-ui", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
MONOSPACED = ("ui-monospace", "DejaVu Sans Mono", "monospace")


def serve_page(
    folder: Path, remote: Remote | None, private_root: Path, base: str, port: int, listening: Callable[[str], None]
) -> None:
    """Serve the page of the run in `folder` until told to stop.

    base: "" for the run's own. Raises ValueError when Gradio is not installed, and when there is nothing to draw with.
    """
    with tempfile.TemporaryDirectory(prefix="fedsd-ui-") as pictures:  # of this user alone, gone with the page
        os.environ |= {
            "GRADIO_TEMP_DIR": pictures,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        name = base or read_config(folder).base.name
        studio = Studio(load.load(name), folder, remote, private_root)
        serve_local(_app(studio, Path(pictures)), Address(HERE, port), listening)


def _app(studio: Studio, pictures: Path) -> FastAPI:
    try:
        import gradio as gr
    except ImportError:
        raise ValueError("the page needs Gradio; install it with: pip install 'fedsd[web]'") from None
    from fedsd.cli.ui.page import Page

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HERE, "localhost"])  # no other site may pose as this one
    theme = gr.themes.Default(primary_hue="slate", font=list(SYSTEM_FONTS), font_mono=list(MONOSPACED))
    return gr.mount_gradio_app(
        app, Page(studio, pictures).blocks(), "/", server_name=HERE, theme=theme, css=CSS, footer_links=[],
        run_history=False, ssr_mode=False, mcp_server=False, pwa=False, enable_monitoring=False,
    )  # fmt: skip
