"""mosec with a process for each model: raw float32 in and out, batches of up to 32, all cores."""

from __future__ import annotations

import numpy as np
from mosec import Runtime, Server, Worker
from recipe import PATHS, SHAPES, compiled


class Model(Worker):
    name: str

    def __init__(self) -> None:
        import keras

        self.call = compiled(keras.models.load_model(PATHS[self.name]))
        for count in (1, 2, 32):
            self.call(np.zeros((count, *SHAPES[self.name]), "float32"))

    def deserialize(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, "float32").reshape(SHAPES[self.name])

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.call(np.stack(data)))

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()


def model(name: str) -> type[Worker]:
    return type(name, (Model,), {"name": name})


if __name__ == "__main__":
    server = Server()
    server.register_runtime(
        {
            f"/{name}": [Runtime(model(name), num=1, max_batch_size=32, max_wait_time=1, start_method="fork")]
            for name in PATHS
        }
    )
    server.run()
