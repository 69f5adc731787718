"""`fedsd serve` and `fedsd generate --server` as a user runs them: a process, TLS, a credential file, kill -9."""

import datetime
import ipaddress
import json
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import certifi
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ies import CREDENTIAL, Process, save_round, serve_process, until, write_run
from models import random_lora, tiny_base
from PIL import Image
from typer.testing import CliRunner

from fedsd.base import denoise
from fedsd.cli.main import app
from fedsd.hybrid.client import Drawing, Drawn, Remote, draw
from fedsd.store import RunFolder, export_diffusers

MARK = "xylophone"  # in every prompt, and nowhere else


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ies")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ies.pem").write_bytes(signed.public_bytes(pem))
    (folder / "ies.key").write_bytes(plain)
    return folder / "ies.pem", folder / "ies.key"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> RunFolder:
    return write_run(tmp_path_factory.mktemp("run") / "run", str(base_folder))


@pytest.fixture(scope="module")
def process(
    run: RunFolder, certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("process")
    (folder / "credentials").write_text(f"# devices\n{CREDENTIAL}\n")
    options = ("--credentials", folder / "credentials", "--certificate", certificate[0], "--key", certificate[1])
    with serve_process(run, folder / "log", *map(str, options), "--max-steps", "990") as serving:
        http = client(certificate)
        until(lambda: http.get(f"{serving.url}/readyz").status_code == 200, 120)
        yield serving


def client(certificate: tuple[Path, Path]) -> httpx.Client:
    trust = ssl.create_default_context(cafile=str(certificate[0]))
    return httpx.Client(verify=trust, headers={"Authorization": f"Bearer {CREDENTIAL}"}, trust_env=False)


def generate(
    process: Process,
    certificate: tuple[Path, Path],
    base_folder: Path,
    out: Path,
    *more: str,
    credential: str = CREDENTIAL,
) -> object:
    command = [
        "generate",
        f"my {MARK}",
        "--server",
        process.url,
        "--ca",
        str(certificate[0]),
        "--base",
        str(base_folder),
    ]
    return CliRunner().invoke(
        app, [*command, "--out", str(out), "--steps", "10", *more], env={"FEDSD_CREDENTIAL": credential}
    )


def test_a_picture_is_begun_there_and_finished_here(
    process: Process, certificate: tuple[Path, Path], base_folder: Path, tmp_path: Path
) -> None:
    export_diffusers(random_lora(tiny_base(), 2), tmp_path / "lora")
    more = (
        "--lora",
        str(tmp_path / "lora"),
        "--generic",
        f"a {MARK}",
        "--local-scale",
        "0.9",
        "--split",
        "0.3",
        "--json",
    )
    done = generate(process, certificate, base_folder, tmp_path / "a.png", *more, "--private-dir", str(tmp_path))
    assert done.exit_code == 0, done.output
    (drawn,) = json.loads(done.output)["drawn"]
    assert (
        drawn["by"] == "server and device"
        and drawn["server"]["server_steps"] == 3
        and drawn["server"]["server_round"] == 1
    )
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (16, 16)
        assert picture.info["parameters"].startswith(
            f"my {MARK}\nSteps: 10, Sampler: DDPM, Server steps: 3, Mix: 1.0, "
        )
        assert "Lora scale: 0.9" in picture.info["parameters"]


def test_a_private_word_is_refused_and_a_wrong_credential_named(
    process: Process, certificate: tuple[Path, Path], base_folder: Path, tmp_path: Path
) -> None:
    private = ("--private-dir", str(tmp_path))
    listed = CliRunner().invoke(app, ["words", "anna", MARK, "--json", *private])
    assert json.loads(listed.output) == {"words": [MARK]}
    done = generate(process, certificate, base_folder, tmp_path / "a.png", *private)
    assert isinstance(done.exception, ValueError) and f"private word '{MARK}'" in str(done.exception)
    done = generate(
        process, certificate, base_folder, tmp_path / "a.png", "--generic", "a dog", *private, credential="wrong"
    )
    assert isinstance(done.exception, ValueError) and "(401): no credential" in str(done.exception)
    assert not (tmp_path / "a.png").exists()


def test_a_new_round_is_taken_up(process: Process, certificate: tuple[Path, Path], run: RunFolder) -> None:
    save_round(run, 2)
    http = client(certificate)
    until(lambda: http.get(f"{process.url}/readyz").json().get("server_round") == 2)


def test_no_prompt_is_in_any_log(process: Process, certificate: tuple[Path, Path]) -> None:
    http, early = client(certificate), f"{process.url}/v1/early"
    http.get(early, params={"prompt": MARK})
    http.get(f"{process.url}/{MARK}")
    for body in (MARK, f'{{"prompt": "{MARK}"}}', f'{{"prompt": "{MARK}", "seed": "{MARK}"}}'):
        response = http.post(early, content=body)
        assert response.status_code == 422 and MARK not in response.text
    log = process.output.read_text()
    assert "POST /v1/early 200" in log and "POST /v1/early 422" in log and "POST /v1/early 401" in log
    assert MARK not in log and CREDENTIAL not in log


def test_a_certificate_that_is_replaced_is_read_again(
    process: Process, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    base, trusted = tiny_base(), tmp_path / "ca.pem"
    remote = Remote(process.url, CREDENTIAL, trusted)
    drawing = Drawing("x", "a dog", 5, denoise.Split(10, 3, 2.0))
    trusted.write_bytes(certificate[0].read_bytes())
    assert draw(base, drawing, remote).told is not None
    trusted.write_bytes(Path(certifi.where()).read_bytes())  # others, not this server's
    assert "is down or broke off (ConnectError)" in draw(base, drawing, remote).why


def test_a_server_killed_in_a_request_is_done_without(process: Process, certificate: tuple[Path, Path]) -> None:
    base, found = tiny_base(), list[Drawn]()
    drawing = Drawing("x", f"a {MARK}", 5, denoise.Split(500, 490, 1.0))
    remote = Remote(process.url, CREDENTIAL, certificate[0], timeout=60)
    device = threading.Thread(target=lambda: found.append(draw(base, drawing, remote)))
    http = client(certificate)
    device.start()
    until(lambda: "fedsd_ies_under_way 1.0" in http.get(f"{process.url}/metrics").text)
    process.popen.send_signal(signal.SIGKILL)
    device.join(120)
    assert found[0].told is None and "is down or broke off" in found[0].why
    assert found[0].latents.isfinite().all()


def test_a_server_that_is_told_to_stop_stops_within_a_run(run: RunFolder, tmp_path: Path) -> None:
    with serve_process(run, tmp_path / "log") as serving:
        until(lambda: httpx.get(f"{serving.url}/readyz").status_code == 200, 120)
        begun = time.monotonic()
        serving.popen.terminate()
        serving.popen.wait(20)
        assert time.monotonic() - begun < 15
        assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "can be reached by others: give --credentials"),
        (["--certificate", "nowhere.pem"], "needs both a certificate and its key"),
        (["--certificate", "nowhere.pem", "--key", "nowhere.key"], "nowhere.pem does not exist"),
        (["--credentials", "nowhere"], "nowhere cannot be read"),
        (["--engine", "triton"], "must be local or ray; got 'triton'"),
        (["--replicas", "2"], "one copy of the base, not 2"),
    ],
)
def test_unsafe_ways_to_serve_are_refused(run: RunFolder, options: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["serve", str(run.path), *options])
    assert isinstance(done.exception, ValueError) and said in str(done.exception)


def test_what_is_no_run_cannot_be_served(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", str(tmp_path)])
    assert isinstance(done.exception, ValueError) and "is no run folder" in str(done.exception)
