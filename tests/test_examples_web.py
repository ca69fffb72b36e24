"""The examples with a web process: the commands of their READMEs, over real HTTP and in a real browser."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery
from celery.result import AsyncResult
from conftest import PATIENCE, Program, marked, quiet, wait_until, with_everything
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

EXAMPLES = Path(__file__).parent.parent / "examples"
ADDRESS = r"http://127\.0\.0\.1:\d+"


class Example:
    """A copy of an example, in which the commands of its README are run."""

    def __init__(self, folder: Path, redis: str) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.redis = redis
        self.programs: list[Program] = []
        bin_folder = os.path.dirname(sys.executable)
        self.env = {
            **quiet({name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "DJANGO_"))}),
            "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]),
            "CELERY_BROKER_URL": redis,
            "CELERY_RESULT_BACKEND": redis,
            "TFPOOL_TEST_MARK": self.mark,
        }

    def command(self, name: str) -> list[str]:
        """The one of the README that begins with ``name``."""
        lines = (self.folder / "README.md").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(f"    {name} ")]
        return shlex.split(line)

    def start(self, name: str, *more: str) -> Program:
        program = Program([*self.command(name), *more], env=self.env, cwd=self.folder)
        self.programs.append(program)
        return program

    def train(self) -> None:
        command = self.command("python ../quickstart/train.py")
        subprocess.run(command, env=with_everything(self.env), cwd=self.folder, check=True)

    def stop(self) -> None:
        """As ``kill`` on the command line does; fails if a process is left."""
        for program in self.programs:
            program.process.terminate()
        for program in self.programs:
            program.wait()
        _, left = psutil.wait_procs(marked(self.mark), timeout=10)
        assert [] == left

    def kill(self) -> None:
        for process in marked(self.mark):
            process.kill()
        for program in self.programs:
            program.process.wait(10)
            print(program.log)  # pytest shows it if the test has failed


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all, with the model that each of them has trained."""
    folder = tmp_path_factory.mktemp("web") / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("*.keras", "__pycache__"))
    Example(folder / "flask", "").train()
    for other in ("fastapi", "django"):
        assert Example(folder / other, "").command("python ../quickstart/train.py")[-1] == "digits.keras"
        shutil.copy(folder / "flask" / "digits.keras", folder / other)
    return folder


@pytest.fixture
def example(request: pytest.FixtureRequest, examples: Path, redis_url: str) -> Iterator[Example]:
    """The one that the test is called after."""
    name = request.node.name.removeprefix("test_")
    # The other tests are at home in 0 and 1.
    database = 2 + ["flask", "fastapi", "django"].index(name)
    example = Example(examples / name, f"{redis_url}/{database}")
    try:
        yield example
        example.stop()
    finally:
        example.kill()


class Page:
    """What a browser shows."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def part(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def wait_for(self, name: str, text: str) -> None:
        """Until the part of that name shows ``text``."""
        try:
            wait_until(lambda: self.text(name) == text, f"{text!r} in #{name}")
        except AssertionError as exc:
            pytest.fail(f"{exc}; the page shows:\n{self.driver.find_element(By.TAG_NAME, 'body').text}")

    def text(self, name: str) -> str | None:
        """None if there is no such part.  In one step, since an element may be gone with the page before it is read."""
        script = "const part = document.getElementById(arguments[0]); return part && part.innerText"
        text: str | None = self.driver.execute_script(script, name)
        return text


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    # Root has no sandbox; a container's /dev/shm may be small.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=720,720"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver") or "chromedriver"))
    try:
        yield Page(driver)
    finally:
        driver.quit()


def fetch(address: str, body: bytes | None = None) -> Any:
    """The JSON that is got from ``address``, or the answer to posting ``body``."""
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def has_tensorflow(program: Program) -> bool:
    regions = psutil.Process(program.process.pid).memory_maps()
    return any("libtensorflow" in region.path for region in regions)


@pytest.mark.parametrize("name", ["flask", "fastapi", "django"])
def test_readme(name: str) -> None:
    """Is one screen."""
    assert len((EXAMPLES / name / "README.md").read_text().splitlines()) <= 40


def test_flask(example: Example) -> None:
    """A model at the top of a module works in the worker, and the web process has none."""
    worker, web = example.start("celery"), example.start("flask", "--port", "0")
    address = web.wait_for(ADDRESS)
    worker.wait_for(r" ready\.")

    assert {"state": "SUCCESS", "digit": 3} == asked(address, (example.folder / "three.json").read_bytes())
    refused = asked(address, b"[[1, 2]]")
    assert "FAILURE" == refused["state"]
    assert "model 'digits' expects input_layer: float32 (rows, 8, 8)" in refused["error"]
    assert f"model 'digits' is loaded where it is used, and not at {example.folder}/tasks.py:14" in worker.log
    assert has_tensorflow(worker)
    assert not has_tensorflow(web)


def asked(address: str, image: bytes) -> Any:
    """What becomes of the task for ``image``."""
    answer = fetch(f"{address}/digits", image)["answer"]

    def ended() -> Any:
        task = fetch(answer)
        return task if task["state"] != "PENDING" else None

    return wait_until(ended, "the end of the task")


def test_fastapi(example: Example, page: Page, tmp_path: Path) -> None:
    """The page shows where the task is, then the digit, and a bar for each."""
    web = example.start("uvicorn", "--port", "0")
    page.driver.get(web.wait_for(ADDRESS))
    page.part("picture").send_keys(str(example.folder / "three.png"))
    page.wait_for("state", "waiting for a worker …")
    client = Celery("client", broker=example.redis, backend=example.redis, set_as_current=False)
    task = AsyncResult(page.part("task").get_attribute("data-id"), app=client)

    client.backend.store_result(task.id, {"done": 4, "of": 9}, "PROGRESS")  # the worker's own are too quick to see
    page.wait_for("state", "4 of 9 looks at it …")
    assert ["4", "9"] == [page.part("progress").get_attribute(name) for name in ("value", "max")]

    worker, told = example.start("celery"), []
    assert 3 == task.get(timeout=PATIENCE, on_message=told.append)["digit"]
    assert list(range(1, 10)) == [one["result"]["done"] for one in told if one["status"] == "PROGRESS"][-9:]

    page.wait_for("digit", "3")
    page.wait_for("state", "done")
    percents = [float(bar.text.removesuffix(" %")) for bar in page.driver.find_elements(By.CLASS_NAME, "percent")]
    assert 10 == len(percents)
    assert 3 == percents.index(max(percents))
    assert sum(percents) == pytest.approx(100, abs=1)
    assert page.driver.save_screenshot(str(tmp_path / "screenshot.png"))
    assert (tmp_path / "screenshot.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "no-picture.png").write_text("hello")
    page.part("picture").send_keys(str(tmp_path / "no-picture.png"))
    page.wait_for("state", "it failed: this file is no picture, or a damaged one")
    assert "" == page.text("digit")
    assert has_tensorflow(worker)
    assert not has_tensorflow(web)


def test_django(example: Example, page: Page) -> None:
    """The worker finds pool, model and task by itself, and the view waits for its answer."""
    worker, web = example.start("celery"), example.start("python manage.py", "0")
    address = web.wait_for(ADDRESS)
    worker.wait_for(r" ready\.")

    page.driver.get(address)
    page.driver.find_element(By.TAG_NAME, "button").click()
    page.wait_for("digit", "3")
    for box in page.driver.find_elements(By.CSS_SELECTOR, "input:checked"):
        box.click()
    page.driver.find_element(By.TAG_NAME, "button").click()
    page.wait_for("id_ink_error", "Nothing is drawn.")
    assert page.text("digit") is None
    assert "digits.tasks.classify" in worker.log
    assert "celery_tfpool" in worker.log
    assert has_tensorflow(worker)
    assert not has_tensorflow(web)
