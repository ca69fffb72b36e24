"""kombu's filesystem transport, without its race.

kombu gives a message its final name before it has written it, so that a
reader can meet it empty (https://github.com/celery/kombu/issues/1551): the
message is lost, and the reader fails with a JSONDecodeError.  The same with
the first binding of an exchange.  Here a file gets its name when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps


class Channel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **options: Any) -> None:
        folder = Path(self.data_folder_out)
        part = written(folder, dumps(payload))
        part.rename(folder / f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg")

    def _queue_bind(self, exchange: str, *binding: Any) -> None:
        file = Path(self.control_folder) / f"{exchange}.exchange"
        if not file.exists():
            part = written(file.parent, "[]")
            with contextlib.suppress(FileExistsError):
                os.link(part, file)
            part.unlink()
        super()._queue_bind(exchange, *binding)


class Transport(filesystem.Transport):
    Channel = Channel


def written(folder: Path, text: str) -> Path:
    part = folder / f"{uuid.uuid4()}.part"
    part.write_text(text)
    return part
