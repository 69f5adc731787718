"""`fedsd ui` and `fedsd serve` as processes, driven in a real browser: Chromium without a window."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from drawable import drawable_run
from ies import Process, process, serve_process, until
from PIL import Image
from typer.testing import CliRunner

from fedsd.cli.grids import grid, save_grid
from fedsd.cli.main import app
from fedsd.data import drawn
from fedsd.store import RunFolder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium to open the page in: apt-get install -y chromium", allow_module_level=True)
if not all(map(find_spec, ("gradio", "playwright"))):
    pytest.skip("no Gradio or playwright: pip install -c constraints.txt -e '.[dev,web]'", allow_module_level=True)

from playwright.sync_api import Page, expect, sync_playwright  # noqa: E402

pytestmark = pytest.mark.slow
WAIT = 60_000  # milliseconds
# An audit hook that writes down every address outside this machine that the page's process looks up or connects to.
AUDIT = """
import os, sys
def hook(event, args):
    address = args[0] if event == "socket.getaddrinfo" else args[1] if event == "socket.connect" else None
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(host, (str, bytes)) and host not in ("127.0.0.1", "localhost", b"127.0.0.1", "::1"):
        with open(os.environ["AUDIT_FILE"], "a") as file:
            print(event, host, file=file)
sys.addaudithook(hook)
"""


@dataclass
class Open:
    """The page, open in the browser, with all that it asked for and complained of, and the processes behind it."""

    page: Page
    server: Process
    ui: Process
    private: Path
    outside: Path
    urls: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def draw(self, said: str) -> None:
        self.page.click("#draw")
        expect(self.page.locator("#progress .note")).to_contain_text(said, timeout=WAIT)

    def figure(self, name: str) -> str:
        card = self.page.locator(".figures > div", has=self.page.locator(f"dt:text-is('{name}')"))
        return card.locator("dd").inner_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = drawable_run(tmp_path_factory.mktemp("page"))
    sheet = grid([("base", [drawn.draw("house", "flat", 1)])], ["house"])
    save_grid(sheet, folder.path / "grids" / "r01.png", "a house")
    return folder


@pytest.fixture(scope="module")
def opened(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "sitecustomize.py").write_text(AUDIT)
    env = {"PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}", "AUDIT_FILE": str(folder / "outside")}
    with serve_process(run, folder / "serve.log") as server:
        more = ("--server", server.url, "--private-dir", str(folder / "private"))
        with process("ui", run, folder / "ui.log", *more, **env) as ui, sync_playwright() as playwright:
            until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, 120)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            found = Open(browser.new_page(), server, ui, folder / "private", folder / "outside")
            found.page.on("request", lambda request: found.urls.append(request.url))
            found.page.on("websocket", lambda socket: found.urls.append(socket.url))
            found.page.on("console", lambda m: found.errors.append(m.text) if m.type in ("error", "warning") else None)
            found.page.on("pageerror", lambda error: found.errors.append(str(error)))
            found.page.goto(ui.url)
            expect(found.page.locator("#reading .note")).to_contain_text("The server reads", timeout=WAIT)
            yield found
            browser.close()


def test_the_server_begins_and_the_device_ends(opened: Open, tmp_path: Path) -> None:
    opened.page.fill("#prompt textarea", "a picture of my house")
    expect(opened.page.locator("#generic textarea")).to_have_value("a picture of my house")
    opened.draw("Done. The server drew steps 1 to 6, this device steps 7 to 20.")
    assert opened.page.locator("#progress .bar i.server.done").count() == 6
    assert opened.page.locator("#progress .bar i.device.done").count() == 14
    assert opened.figure("cache").startswith("miss")
    assert opened.figure("bytes").endswith("down") and opened.figure("queue").endswith("on the server")
    assert all("s" in opened.figure(name) for name in ("server", "network", "this device"))
    with opened.page.expect_download() as download:
        opened.page.click("#picture [aria-label='Download']")
    download.value.save_as(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (16, 16) and picture.info["parameters"].startswith("a picture of my house\n")
        assert "Server steps: 6" in picture.info["parameters"]


def test_a_second_click_finds_the_steps_kept(opened: Open) -> None:
    opened.page.click("#draw")
    expect(opened.page.locator("#figures")).to_contain_text("hit", timeout=WAIT)


def test_the_server_reads_what_is_shown_and_nothing_else(opened: Open) -> None:
    opened.page.uncheck("#same input")
    opened.page.fill("#generic textarea", "a house")
    expect(opened.page.locator("#reading .note")).to_contain_text("these 7 characters", timeout=WAIT)
    opened.page.get_by_role("button", name="The whole request").click()
    expect(opened.page.locator("#request")).to_contain_text('"prompt": "a house"', timeout=WAIT)
    assert "my house" not in opened.page.inner_text("#request")
    opened.draw("Done. The server drew")


def test_a_private_word_is_refused(opened: Open) -> None:
    assert CliRunner().invoke(app, ["words", "anna", "sketch", "--private-dir", str(opened.private)]).exit_code == 0
    before = asked(opened)
    opened.page.fill("#generic textarea", "a Sketch of a house")
    expect(opened.page.locator("#reading .note.refused")).to_contain_text('"sketch" is a private word', timeout=WAIT)
    opened.draw('Refused: "sketch" is a private word and never leaves this machine.')
    opened.page.fill("#generic textarea", "a house")
    assert asked(opened) == before


def asked(opened: Open) -> str:
    lines = httpx.get(f"{opened.server.url}/metrics").text.splitlines()
    return "".join(line for line in lines if line.startswith("fedsd_ies_asks_total"))


def test_four_ways_are_compared(opened: Open) -> None:
    opened.page.get_by_role("tab", name="Compare").click()
    opened.page.click("#compare")
    expect(opened.page.locator("#compared")).to_contain_text("Picture 4 of 4", timeout=WAIT)
    expect(opened.page.locator("#compared .note.good")).to_contain_text("The server drew steps 1 to 6", timeout=WAIT)
    shown = [opened.page.locator(f"#column-{i} img").get_attribute("src") for i in range(4)]
    assert len(set(shown)) == 4 and None not in shown


def test_a_picture_can_be_stopped_and_the_next_one_drawn(opened: Open) -> None:
    opened.page.get_by_role("tab", name="Draw").click()
    opened.page.get_by_role("button", name="Steps and guidance").click()
    opened.page.fill("#steps input[type=number]", "100")
    opened.page.click("#draw")
    expect(opened.page.locator("#progress .bar i")).to_have_count(100, timeout=WAIT)
    opened.page.locator("button:visible", has_text="Stop").click()
    expect(opened.page.locator("#progress .note")).to_have_text("Stopped.", timeout=WAIT)
    opened.page.fill("#steps input[type=number]", "20")
    opened.draw("Done. The server drew steps 1 to 6")


def test_the_run_is_shown(opened: Open) -> None:
    opened.page.get_by_role("tab", name="Run").click()
    expect(opened.page.locator(".run figure img")).to_have_count(1, timeout=WAIT)
    expect(opened.page.locator(".run")).to_contain_text("cluster 1")
    opened.page.get_by_role("tab", name="Draw").click()


def test_a_killed_server_is_done_without(opened: Open) -> None:
    opened.server.popen.kill()
    opened.server.popen.wait(20)
    opened.page.fill("#seed input", "5")
    opened.draw("is down or broke off (ConnectError). This device drew all 20 steps.")
    assert opened.page.locator("#progress .note.alone").count() == 1
    assert opened.page.locator("#progress .bar i.device.done").count() == 20


def test_nothing_left_this_machine_and_nothing_went_wrong(opened: Open) -> None:
    assert {urlsplit(url).hostname for url in opened.urls if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}
    assert opened.errors == []
    assert not opened.outside.exists(), opened.outside.read_text()
    log = opened.ui.output.read_text()
    assert "Traceback" not in log and "house" not in log
    assert json.loads(log.splitlines()[0])["url"] == opened.ui.url


def test_another_site_cannot_pose_as_the_page(opened: Open) -> None:
    assert httpx.get(opened.ui.url, headers={"Host": "evil.example"}).status_code == 400
