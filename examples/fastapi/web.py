"""The web side: takes a picture, and tells how far its task is.  TensorFlow is never loaded here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, UploadFile
from fastapi.responses import FileResponse
from tasks import app as celery
from tasks import read_digit

app = FastAPI()
MAX_BYTES = 1_000_000


@app.get("/")
def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


@app.post("/tasks", status_code=202)
def send(picture: UploadFile) -> dict[str, str]:
    file = picture.file.read(MAX_BYTES + 1)
    if len(file) > MAX_BYTES:
        raise HTTPException(413, f"more than {MAX_BYTES:,} bytes")
    return {"id": read_digit.delay(file).id}


@app.get("/tasks/{task_id}")
def show(task_id: str) -> dict[str, Any]:
    """PENDING, PROGRESS with how much of how much, SUCCESS with the answer, or FAILURE with the reason."""
    meta = celery.backend.get_task_meta(task_id)  # one read: an AsyncResult makes one for state and one for result
    state, value = meta["status"], meta["result"]
    if state == "FAILURE":
        return {"state": state, "error": str(value)}
    return {"state": state, **(value or {})}
