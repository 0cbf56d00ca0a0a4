"""A JupyterLab of our own, with a copy of the lesson, that leaves nothing behind."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LESSON = ROOT / "notebooks" / "finetune_gemma3_emoji.ipynb"
START_LIMIT = 60

# All cells are in the page at all times; nothing is fetched from the network or asked of the person.
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Lab:
    """A running JupyterLab; `with Lab(venv) as lab`."""

    def __init__(self, venv):
        self.folder = Path(tempfile.mkdtemp(prefix="emoji_lab-browser-"))
        # The kernel resolves links, so the crate is the one of this checkout: nothing is built anew.
        (self.folder / "emoji_lab").symlink_to(ROOT / "emoji_lab")
        self.notebook = self.folder / "notebooks" / "lesson.ipynb"
        self.notebook.parent.mkdir()
        self.notebook.write_text(json.dumps(without_outputs(json.loads(LESSON.read_text()))))
        self.token, self.port = secrets.token_hex(16), free_port()
        self.log = open(self.folder / "jupyterlab.log", "w+")
        command = [
            *self.program(venv), "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.port}",
            "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.folder}",
        ]  # fmt: skip
        if os.geteuid() == 0:
            command.append("--allow-root")
        self.process = subprocess.Popen(command, env=self.environment(), stdout=self.log, stderr=self.log)

    def program(self, venv):
        # The page's own objects, to put source text into cells. Buttons and menus are pressed.
        return [venv / "bin" / "jupyter-lab", "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]

    def environment(self):
        """No settings and no token from outside, and nothing written outside of our folder."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("EMOJI_LAB_", "JUPYTER"))}
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            env.pop(name, None)
        for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
            env["JUPYTER_" + name] = str(self.folder / "jupyter" / name.lower())
        settings = self.folder / "jupyter" / "settings"
        for plugin, values in SETTINGS.items():
            path = settings / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        env["JUPYTERLAB_SETTINGS_DIR"] = str(settings)
        env["JUPYTERLAB_WORKSPACES_DIR"] = str(self.folder / "jupyter" / "workspaces")
        env["JUPYTER_TOKEN"] = self.token
        env["HF_HOME"] = str(self.folder / "hf")
        env["HF_TOKEN_PATH"] = str(self.folder / "hf" / "token")
        # Nothing listens there.
        env["HF_ENDPOINT"] = "http://127.0.0.1:9"
        return env

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/lab/tree/notebooks/lesson.ipynb?token={self.token}&reset"

    def __enter__(self):
        until = time.monotonic() + START_LIMIT
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api", timeout=5).close()
                return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        words = self.last_words()
        self.__exit__()
        raise RuntimeError(f"Jupyter does not answer. Its last words: {words}")

    def last_words(self):
        self.log.flush()
        return Path(self.log.name).read_text()[-2000:]

    def __exit__(self, *_):
        # On SIGTERM JupyterLab shuts its kernels down.
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Classic(Lab):
    """The same with the classic Notebook; `kernels` is where Jupyter finds the kernel."""

    def __init__(self, venv, kernels):
        self.kernels = kernels
        super().__init__(venv)

    def program(self, venv):
        return [venv / "bin" / "jupyter-nbclassic"]

    def environment(self):
        return {**super().environment(), "JUPYTER_PATH": str(self.kernels)}

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/notebooks/notebooks/lesson.ipynb?token={self.token}"


def without_outputs(notebook):
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return notebook
