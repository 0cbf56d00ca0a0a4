"""Folders with the exported page, whole and broken, and the servers that they are opened from."""

import base64
import functools
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

# Texts that are to stay texts, wherever they come from.
EVIL = [
    "<img src=/taken onerror=\"window.taken=1;fetch('/taken')\">",
    "</script><script>window.taken=1;document.title='taken';alert(1)</script>",
    "\"><svg onload=alert(1)><a href=javascript:alert(1)>😀</a>",
    "{{constructor.constructor('alert(1)')()}} ${alert(1)} \u202egnorw",
]
LONG = "W" * 200_000

# A library that answers with EVIL, and with a text that does not end.
FAKE = """
const texts = %s;
let n = 0;
export class Wllama {
  setCompat() {}
  async loadModel() {}
  getNumThreads() { return 1; }
  getModelMetadata() { return { hparams: { nVocab: 1 } }; }
  async createCompletion() { return { choices: [{ text: texts[n++ %% texts.length] }] }; }
}
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Plain:
    """`python3 -m http.server`, as a person starts it."""

    def __init__(self, folder):
        self.port = free_port()
        command = [sys.executable, "-m", "http.server", str(self.port), "--bind", "127.0.0.1", "--directory", folder]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(self.at(""), timeout=2).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise RuntimeError("python3 -m http.server does not answer")

    def at(self, path):
        return f"http://127.0.0.1:{self.port}/{path}"

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


class Isolated:
    """A server that sends the two headers of an isolated page, as a Space does."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, *_):
            pass

    def __init__(self, folder):
        handler = functools.partial(self.Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def at(self, path):
        return f"http://127.0.0.1:{self.server.server_port}/{path}"

    def stop(self):
        self.server.shutdown()


class Recorder:
    """A proxy that lets nothing through, and knows what was to go out. Loopback goes past it."""

    def __init__(self):
        self.asked, self.socket = [], socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    self.asked.append(connection.recv(2000).decode(errors="replace").split("\r\n")[0])
                except OSError:
                    self.asked.append("?")


def copy(site, name, without=()):
    """A copy of the page whose files may be replaced."""
    folder = Path(site) / name
    folder.mkdir()
    for file in (Path(site) / "page").iterdir():
        if file.name not in without:
            os.link(file, folder / file.name)
    return folder


def replace(folder, name, data):
    """Puts another file at a name; the copies that share the old one keep it."""
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def settings(folder, change):
    read = json.loads((folder / "page.json").read_text())
    change(read)
    replace(folder, "page.json", json.dumps(read))


# What may happen to the folder, and a word of the sentence that is to be on the page.
FAULTS = {
    "no-model": "is not beside the page (the server says 404)",
    "cut-model": "is cut: it has",
    "long-model": "is another one than the page was made for",
    "html-model": "is no model",
    "damaged-model": "The model did not start",
    "no-library": "wllama.js, is missing or damaged",
    "other-library": "wllama.js, is missing or damaged",
    "no-wasm": "wllama.wasm, is missing or damaged",
    "cut-wasm": "wllama.wasm, is missing or damaged",
    "no-settings": "page.json, are missing or damaged",
    "html-settings": "page.json, are missing or damaged",
}


def make_faults(site):
    model = (Path(site) / "page" / "model.gguf").read_bytes()
    copy(site, "no-model", ["model.gguf"])
    copy(site, "no-library", ["wllama.js"])
    copy(site, "no-wasm", ["wllama.wasm"])
    copy(site, "no-settings", ["page.json"])
    replace(copy(site, "other-library"), "wllama.js", FAKE % "[]")
    replace(copy(site, "cut-wasm"), "wllama.wasm", (Path(site) / "page" / "wllama.wasm").read_bytes()[:100_000])
    replace(copy(site, "html-settings"), "page.json", "<!doctype html><p>Sign in")
    replace(copy(site, "cut-model"), "model.gguf", model[: len(model) // 2])
    replace(copy(site, "long-model"), "model.gguf", model + b"more")
    replace(copy(site, "html-model"), "model.gguf", b"<!doctype html>".ljust(len(model)))
    replace(copy(site, "damaged-model"), "model.gguf", model[:200] + bytes(len(model) - 200))


def fake(folder, texts, change=lambda read: None):
    """Puts a library there that says `texts`, as the one that the page knows."""
    script = (FAKE % json.dumps(texts)).encode()
    replace(folder, "wllama.js", script)
    integrity = "sha384-" + base64.b64encode(hashlib.sha384(script).digest()).decode()

    def known(read):
        read["library"]["files"]["script"]["integrity"] = integrity
        change(read)

    settings(folder, known)


def make_hostile(site):
    def change(read):
        read["title"], read["example"] = EVIL[1], EVIL[0]
        read["model"]["name"], read["model"]["url"] = EVIL[2], "javascript:alert(1)"
        read["terms"] = {"name": EVIL[0], "url": "data:text/html,<script>alert(1)</script>"}

    fake(copy(site, "hostile"), [*EVIL, LONG], change)
    fake(copy(site, "long"), [LONG, "😀" * 5_000, "Z " * 9_000])


def make_large(site):
    """The page as it is with a large model: nothing is fetched before someone types."""
    folder = copy(site, "large")
    script = (folder / "app.js").read_text()
    assert script.count("const SMALL = 16e6;") == 1
    replace(folder, "app.js", script.replace("const SMALL = 16e6;", "const SMALL = 1;"))
