"""``python -m construction_panoptic app``: a page in the browser to drop photographs and videos on."""

import asyncio
import base64
import io
import shutil
import tempfile
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from construction_panoptic.commands import Command, device_option, host_option, model_option
from construction_panoptic.errors import InputDataError, UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from construction_panoptic.models.protocol import PanopticModel

MAX_BYTES = 512 << 20  # of a file that is dropped
SHOWN_SIDE = 1600  # pixels, the longest side of what the page draws
LEAST_SCORE = 0.05  # segments below it are not even sent to the page


@click.command(cls=Command)
@model_option
@host_option
@click.option("--port", default=7860)
@device_option
def app(model: str, host: str, port: int, device: str) -> None:
    """Show what the model sees in photographs and videos that are dropped on a page in the browser."""
    # Here, since they take seconds to import, too many for --help.
    import uvicorn

    from construction_panoptic.evaluation.inference import on_device
    from construction_panoptic.models.files import load_model

    application = build(on_device(load_model(model), device), hosts=["localhost", "127.0.0.1", host])
    click.echo(f"Open http://{host}:{port}")
    uvicorn.run(application, host=host, port=port, log_level="warning")


def build(model: "PanopticModel", hosts: list[str]) -> "FastAPI":
    """Build the ASGI application: the page, and what it asks for.

    It takes the content of files, never their paths, and works on one at a time. Requests to another name than
    ``hosts`` are refused, so that no page on the internet can reach it by a name of its own.
    """
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import FileResponse, HTMLResponse
    from starlette.background import BackgroundTask
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    application = FastAPI(openapi_url=None)
    application.add_middleware(TrustedHostMiddleware, allowed_hosts=["*"] if "0.0.0.0" in hosts else hosts)
    page = (files("construction_panoptic.commands") / "app.html").read_text(encoding="utf-8")
    turn = asyncio.Lock()

    async def received(request: Request, folder: Path, name: str) -> Path:
        path = folder / (PurePosixPath(name.replace("\\", "/")).name or "file")
        size = 0
        try:
            opened = path.open("wb")
        except (OSError, ValueError):  # too long, "..", or with a zero in it
            raise HTTPException(400, "The name is none that a file can have.") from None
        with opened as stream:
            async for part in request.stream():
                size += len(part)
                if size > MAX_BYTES:
                    raise HTTPException(413, f"The file is larger than {MAX_BYTES >> 20} MiB.")
                stream.write(part)
        return path

    async def answered(work: Any, *arguments: Any) -> Any:
        try:
            async with turn:
                return await run_in_threadpool(work, *arguments)
        except UserError as error:
            raise HTTPException(400, str(error)) from error

    @application.get("/")
    def show() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'self' 'unsafe-inline' data: blob:"})

    @application.get("/model")
    def describe() -> dict[str, Any]:
        shown = model.spec.least_scores
        return {
            "categories": model.spec.categories,
            "things": shown[True],
            "stuff": shown[False],
            "least": least_score(model),
        }

    @application.post("/segments")
    async def find(request: Request, name: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = await received(request, Path(folder), name)
            return await answered(segments_of, model, path)

    @application.post("/results")
    async def give(request: Request, name: str, threshold: float, threshold_stuff: float | None = None) -> FileResponse:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            path = await received(request, Path(folder), name)
            archive = await answered(results_of, model, path, threshold, threshold_stuff)
            forget = BackgroundTask(stack.pop_all().close)
        return FileResponse(archive, filename=f"{path.stem}.zip", background=forget)

    return application


def least_score(model: "PanopticModel") -> float:
    """Give the least score of the segments that are sent: weak ones too, unless they would change the others."""
    shown = min(model.spec.least_scores.values())
    return shown if model.spec.merges_queries else min(LEAST_SCORE, shown)


def segments_of(model: "PanopticModel", path: Path) -> dict[str, Any]:
    """Segment an image, for the page; `UserError`: it is not readable.

    Gives ``segments`` (COCO's ``segments_info`` with ``score``, at the size of the file), ``width``, ``height`` of the
    file, and as data URLs at most `SHOWN_SIDE` wide or high: ``image`` (JPEG, upright) and ``ids`` (PNG, a pixel's id
    is R + 256 G + 65536 B).
    """
    import numpy as np
    from PIL import Image

    from construction_panoptic.annotations.images import ImageError, read_rgb
    from construction_panoptic.annotations.panoptic_png import encode_id_map
    from construction_panoptic.prediction.running import predict_pixels

    try:
        pixels = read_rgb(path)
    except ImageError as error:
        raise InputDataError(str(error).replace(str(path), path.name)) from None
    (prediction,) = predict_pixels(model, [pixels], None if model.spec.merges_queries else least_score(model))
    height, width = pixels.shape[:2]
    scale = min(1.0, SHOWN_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    ids = Image.fromarray(prediction.id_map.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    jpeg = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS).save(jpeg, "JPEG", quality=88)
    return {
        "width": width,
        "height": height,
        "segments": prediction.segments_info,
        "image": _data_url("image/jpeg", jpeg.getvalue()),
        "ids": _data_url("image/png", encode_id_map(np.asarray(ids))),
    }


def results_of(model: "PanopticModel", path: Path, threshold: float, threshold_stuff: float | None) -> Path:
    """Predict an image or a video, and pack what `predict` writes; `UserError`: it cannot be read."""
    from construction_panoptic.config.base import parse
    from construction_panoptic.config.prediction import PredictionSettings
    from construction_panoptic.prediction.results import write_results
    from construction_panoptic.prediction.running import predict_source
    from construction_panoptic.prediction.sources import find_files
    from construction_panoptic.prediction.tables import write_tables

    least = {"threshold": threshold, "threshold_stuff": threshold_stuff}
    chosen = {"source": str(path), **least, "cvat": "masks", "execution": {"workers": 1}}
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    settings = parse(PredictionSettings, chosen, "app")
    write_results(predict_source(model, find_files(str(path)), settings), folder)
    seen, rejected = write_tables(folder)
    if seen.empty and len(rejected):
        raise InputDataError(str(rejected["detail"].iloc[0]).replace(str(path), path.name))
    return Path(shutil.make_archive(str(path.parent / "archive"), "zip", folder))


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
