"""Where tasks and results are kept: folders in the current one, so that no server is needed."""

import os

for folder in ("queue", "control", "results"):
    os.makedirs(folder, exist_ok=True)

broker_url = "filesystem://"
broker_transport_options = {
    "data_folder_in": "queue",
    "data_folder_out": "queue",
    "control_folder": "control",
    "polling_interval": 0.01,
}
result_backend = "file://results"
