"""The page: a drawing, and what the worker says of it."""

from __future__ import annotations

from celery.exceptions import TimeoutError as NoAnswer
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from .forms import Drawing
from .tasks import classify

#: Seconds: a worker that has just started loads the model first.
PATIENCE = 30


def read(request: HttpRequest) -> HttpResponse:
    """Show the drawing, and once it is sent the digit on it."""
    form, digit = Drawing(request.POST or None), None
    if form.is_valid():
        try:
            digit = classify.delay(form.image()).get(timeout=PATIENCE)
        except NoAnswer:
            form.add_error(None, f"No worker has answered within {PATIENCE} seconds.")
    return render(request, "digits/read.html", {"form": form, "digit": digit})
