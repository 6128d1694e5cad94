"""A real studio in a process of its own, and a client that speaks HTTP to it as a script does."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psutil
from PIL import Image

_SEC = 300.0  # for so long a wait may last on a busy machine


class Server:
    """`cond-pipelines studio FOLDER`; `kill` is `kill -9`."""

    def __init__(self, folder: Path, home: Path, env: dict[str, str]):
        command = [sys.executable, "-m", "cond_pipelines.cli", "studio", str(folder), "--no_browser", "--port=0"]
        self.process = subprocess.Popen(
            [*command, f"--cache_dir={home}"], stdout=subprocess.PIPE, env=env, text=True, cwd=folder
        )
        self.address = self.process.stdout.readline().removeprefix("studio: ").strip()
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]+)", self.address)
        assert match, self.address
        self.port, self.token = int(match[1]), match[2]

    def raw(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None):
        """(status, headers, content) of a request with these headers alone, and the right Host unless it is given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_SEC)
        with suppress(BrokenPipeError, ConnectionResetError):  # an answer may come before all is sent
            connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), content

    def get(self, route: str, status: int = 200, /, **query: Any) -> Any:
        address = f"/api/{route}" + (f"?{urlencode(query, doseq=True)}" if query else "")
        return self._json(status, *self.raw("GET", address, self._known()))

    def post(self, route: str, status: int = 200, /, **values: Any) -> Any:
        headers = self._known() | {"Content-Type": "application/json"}
        return self._json(status, *self.raw("POST", f"/api/{quote(route)}", headers, json.dumps(values).encode()))

    def _known(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    @staticmethod
    def _json(wanted: int, status: int, headers: dict[str, str], content: bytes) -> Any:
        assert status == wanted, content[:500]
        return json.loads(content) if headers["content-type"] == "application/json" else content

    def run(self, folder: Path) -> dict[str, Any]:
        """The state of a run."""
        return next((run for run in self.get("state")["runs"] if run["path"] == str(folder)), {})

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """Until `what` returns something true."""
        end = time.monotonic() + _SEC
        while not (value := what()):
            assert time.monotonic() < end, self.get("state")
            time.sleep(0.05)
        return value

    def job(self, name: str) -> dict[str, Any]:
        """A command, when it has ended."""
        return self.wait_for(lambda: (value := self.get(f"jobs/{name}"))["state"] != "running" and value)

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self.process.send_signal(signal.SIGINT)
        self.process.wait(_SEC)
        self.process.stdout.close()


def folder_of_shapes(folder: Path, num_images: int = 24) -> Path:
    """Two classes of images of 8 px, and three files that are no images, each for a reason of its own."""
    for number, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for i in range(num_images):
            colour = (number * 128 + 4 * i, 8 * i, 255 - number * 100)
            Image.new("RGB", (8, 8), colour).save(folder / name / f"{i:02d}.png")
    (folder / "dark" / "text.png").write_text("this is text")
    (folder / "dark" / "empty.png").write_bytes(b"")
    whole = (folder / "light" / "00.png").read_bytes()
    (folder / "light" / "cut.png").write_bytes(whole[: len(whole) - 25])
    return folder


def environment(env: dict[str, str]) -> dict[str, str]:
    """Of the studio and of what it starts."""
    return env | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8"}


def tiny(data: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of a training of seconds."""
    args = {"train_data_dir": str(data), "output_dir": str(folder), "conditioning": "class", "on_bad_image": "skip"}
    args |= {"resolution": 8, "unet_size": "xxs", "train_batch_size": 4, "max_train_steps": 40, "logging_steps": 2}
    args |= {"num_validation_images": 2, "default_num_inference_steps": 2, "checkpointing_steps": 10}
    return args | {"report_to": "none", "mixed_precision": "no", "ema_lengths": [0.05, 0.1]} | changes


def locker(folder: Path) -> int:
    """The process that is at work in a run's folder, as its lock says."""
    return int(re.search(r"process (\d+)", (folder / ".lock").read_text())[1])


assert os.name == "posix"
