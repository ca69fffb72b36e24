"""The Celery app: a model, and a task that tells how far it is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from celery import Celery, Task
from PIL import Image, ImageOps

from celery_tfpool import get_model

# CELERY_BROKER_URL and CELERY_RESULT_BACKEND in the environment go before.
app = Celery("tasks", broker="redis://localhost", backend="redis://localhost")
app.conf.tf_model_path = Path(__file__).with_name("digits.keras")

Image.MAX_IMAGE_PIXELS = 4_000_000  # a small file can be a very large picture
#: Degrees: the picture is looked at once for each.
ANGLES = (0, -3, 3, -6, 6, -9, 9, -12, 12)


@app.task(bind=True)
def read_digit(self: Task, file: bytes) -> dict[str, Any]:
    """The digit on the picture ``file``, and the probability of each: the mean of several looks."""
    ink = ink_of(file)
    looks = []
    for angle in ANGLES:
        looks.append(get_model().predict([scaled(ink.rotate(angle))])[0])
        self.update_state(state="PROGRESS", meta={"done": len(looks), "of": len(ANGLES)})
    probabilities = np.mean(looks, axis=0)
    return {"digit": probabilities.argmax(), "probabilities": probabilities}


def ink_of(file: bytes) -> Image.Image:
    """The picture in grey, bright where the ink is, whichever of paper and ink is brighter."""
    try:
        picture = Image.open(io.BytesIO(file)).convert("RGBA")
    except (OSError, SyntaxError) as exc:
        raise ValueError("this file is no picture, or a damaged one") from exc
    paper = Image.new("RGBA", picture.size, "white")  # seen where the picture is transparent
    grey = ImageOps.autocontrast(Image.alpha_composite(paper, picture).convert("L"))
    darkest, brightest = grey.getextrema()
    if darkest == brightest:
        raise ValueError("there is nothing on this picture")
    return ImageOps.invert(grey) if np.mean(grey) > 127 else grey  # there is more paper than ink


def scaled(ink: Image.Image) -> Any:
    """As the images that the model has learnt from: 8 × 8, grey levels 0 … 16, the digit as large as fits."""
    box = ink.point(lambda level: 255 * (level > 63)).getbbox()
    return np.array(ImageOps.pad(ink.crop(box), (8, 8), Image.Resampling.BOX)) / 255 * 16
