"""The Inference Edge Server as an ASGI application, the same under uvicorn and under Ray Serve.

    POST /v1/early   the early steps (fedsd.hybrid.protocol)      GET /healthz   the process lives
    GET  /v1/info    what is computed with, and the limits         GET /readyz    it can answer
    GET  /metrics    figures in Prometheus' text format

Prompts are neither logged nor kept: what is kept has the SHA-256 of its request for a key.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from fedsd.hybrid.admission import Limits, Refused
from fedsd.hybrid.credentials import admits
from fedsd.hybrid.engine import Engine
from fedsd.hybrid.protocol import EARLY, TENSORS
from fedsd.hybrid.service import LOG, Service, trace_of

Handler = Callable[[Request], Awaitable[Response]]


def build_app(engine: Engine, folder: Path, credentials: Sequence[str], limits: Limits) -> FastAPI:
    """Return the application. folder: run folder; credentials: none lets everybody ask."""
    service = Service(engine, folder, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        keeping = asyncio.create_task(service.keep_ready())
        keeping.add_done_callback(lambda task: _report(service, task))
        yield
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([keeping])
        engine.stop()

    app = FastAPI(title="fedsd IES", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    guarded = _Guard(service, credentials)
    app.add_api_route("/healthz", _healthz, methods=["GET"])
    app.add_api_route("/readyz", guarded.open(_readyz), methods=["GET"])
    app.add_api_route("/metrics", guarded.closed(_metrics), methods=["GET"])
    app.add_api_route("/v1/info", guarded.closed(_info), methods=["GET"])
    app.add_api_route(EARLY, guarded.closed(_early), methods=["POST"])
    return app


def _report(service: Service, task: asyncio.Task[None]) -> None:
    """A base that cannot be loaded is said by /readyz and in the log; the process stays to say it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        service.trouble = f"the base could not be loaded ({type(error).__name__}); see the server's log"
        LOG.error("the base could not be loaded", exc_info=error)


class _Guard:
    """What is around every handler: credentials, the time limit, refusals as JSON, a count and a line in the log."""

    def __init__(self, service: Service, credentials: Sequence[str]) -> None:
        self.service, self.credentials = service, credentials

    def open(self, handler: Callable[[Service, Request], Awaitable[Response]]) -> Handler:
        async def answer(request: Request) -> Response:
            begun = time.monotonic()
            try:
                async with asyncio.timeout(self.service.limits.timeout + 1):  # runs end themselves a little before
                    response = await handler(self.service, request)
            except Refused as refusal:
                response = _refused(refusal)
            except TimeoutError:
                response = _refused(Refused(504, "the request took too long"))
            except Exception as error:
                LOG.error("a request failed:\n%s", trace_of(error))  # its text may be a prompt
                response = _refused(Refused(500, "the server failed; its log says where"))
            self.service.meters.requests.labels(str(response.status_code)).inc()
            ms = 1000 * (time.monotonic() - begun)
            LOG.info("%s %s %d %.0f ms", request.method, request.scope["route"].path, response.status_code, ms)
            return response

        return answer

    def closed(self, handler: Callable[[Service, Request], Awaitable[Response]]) -> Handler:
        async def admitted(service: Service, request: Request) -> Response:
            if not admits(self.credentials, request.headers.get("authorization", "")):
                raise Refused(401, "no credential that this server knows; send Authorization: Bearer …")
            return await handler(service, request)

        return self.open(admitted)


def _refused(refusal: Refused) -> Response:
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": str(refusal)}, refusal.status, headers)


async def _healthz() -> Response:
    return JSONResponse({"status": "ok"})


async def _readyz(service: Service, request: Request) -> Response:
    _, neutral = service.ready()
    return JSONResponse({"status": "ready", "server_round": neutral.server_round})


async def _metrics(service: Service, request: Request) -> Response:
    return Response(service.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _info(service: Service, request: Request) -> Response:
    offer, neutral = service.ready()
    adapter = {"server_round": neutral.server_round, "lora_sha": neutral.sha}
    return JSONResponse(offer.as_dict() | adapter | {"limits": asdict(service.limits)})


async def _early(service: Service, request: Request) -> Response:
    body = await _body(request, service.limits.max_body)
    return Response(await service.answer(body, request.headers.get("content-type", "")), media_type=TENSORS)


async def _body(request: Request, most: int) -> bytes:
    """Return the body; Refused (413) as soon as it is, or says it will be, too large."""
    too_large = Refused(413, f"the body is larger than {most} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise too_large
    return bytes(body)


def log_to_stderr() -> None:
    """Send the server's own log, which holds no prompt, to the standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
