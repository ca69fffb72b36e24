"""One page."""

from __future__ import annotations

from digits.views import read
from django.urls import path

urlpatterns = [path("", read)]
