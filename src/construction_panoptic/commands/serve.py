"""``python -m construction_panoptic serve FOLDER``: MLflow's server of a model, behind bounds on every request."""

import asyncio
import os

import click
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from construction_panoptic.commands import Command, host_option

MODEL = "data/06_models/served"
MAX_BODY = 32 << 20  # bytes of a request
MAX_PARTS = 10_000  # brackets and commas of a body; what is parsed takes far more memory than its text
MAX_WAITING = 16 * MAX_BODY  # bytes of all requests that are being read or answered
SECONDS = 60  # for a body to come


class BoundedRequests:
    """An ASGI application that reads requests within bounds, and hands them to another one.

    It answers ``{"error_code", "message"}`` with 408 to a body that comes too slowly, 413 to one that is too large,
    415 to what is not JSON (Parquet unpacks to any size; CSV fails in MLflow, whose schema has no type for ``image``),
    400 to one of too many parts, and 503 where too much waits already.
    """

    def __init__(self, application: ASGIApp, *, seconds: float = SECONDS) -> None:
        self._application = application
        self._seconds = seconds
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._application(scope, receive, send)
            return
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    await self._read(Headers(scope=scope), receive, body)
            except TimeoutError:
                raise HTTPException(408, f"The request took more than {self._seconds:g} s to arrive.") from None
            messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

            async def replay() -> Message:
                return messages.pop() if messages else await receive()

            await self._application(scope, replay, send)
        except HTTPException as error:
            content = {"error_code": "BAD_REQUEST", "message": error.detail}
            await JSONResponse(content, error.status_code)(scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            self._waiting -= len(body)

    async def _read(self, headers: Headers, receive: Receive, body: bytearray) -> None:
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "Send application/json.")
        too_large = HTTPException(413, f"The request is larger than {MAX_BODY} bytes.")
        if int(headers.get("content-length", 0)) > MAX_BODY:
            raise too_large
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part, more = message.get("body", b""), message.get("more_body", False)
            if len(body) + len(part) > MAX_BODY:
                raise too_large
            if self._waiting + len(part) > MAX_WAITING:
                raise HTTPException(503, "Too many requests wait for an answer; try again.")
            body += part
            self._waiting += len(part)
        if sum(body.count(mark) for mark in b"[{,") > MAX_PARTS:
            raise HTTPException(400, f"The request has more than {MAX_PARTS} values.")


@click.command(cls=Command)
@click.argument("folder", default=MODEL, type=click.Path(exists=True, file_okay=False))
@host_option
@click.option("--port", default=5001)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False),
    help="Folder below which clients may name images by path.  [default: none]",
)
def serve(folder: str, host: str, port: int, images: str | None) -> None:
    """Serve the model in FOLDER, which the pipeline model_export has written, over HTTP."""
    # Here, since they take seconds to import, too many for --help.
    import uvicorn
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import load_model, scoring_server

    from construction_panoptic.prediction.answering import IMAGE_FOLDER

    if images is not None:
        os.environ[IMAGE_FOLDER] = images
    try:
        application = BoundedRequests(scoring_server.init(load_model(folder)))
    except MlflowException as error:
        raise click.ClickException(f"{folder} is no model to serve; run model_export. ({error.message})") from error
    click.echo(f"Serving {folder} at http://{host}:{port}/invocations")
    uvicorn.run(application, host=host, port=port, log_level="warning")
