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

# Libraries that answer with EVIL, and with a text that does not end: what the page knows of wllama, and of
# Transformers.js, whose model gives one token for each text and then the one that ends it.
FAKES = {
    "gguf": """
const texts = %s;
let n = 0;
export class Wllama {
  setCompat() {}
  async loadModel() {}
  getNumThreads() { return 1; }
  getModelMetadata() { return { hparams: { nVocab: 1 } }; }
  async createCompletion() { return { choices: [{ text: texts[n++ %% texts.length] }] }; }
}
""",
    "onnx": """
const texts = %s;
let n = 0;
export const env = { backends: { onnx: { wasm: {} } } };
export const random = { Random: class { random() { return 0.5; } } };
export class Tensor { constructor(type, data, dims) { this.dims = dims; } }
export class DynamicCache { get_seq_length() { return 1; } async dispose() {} }
export const AutoTokenizer = { async from_pretrained() {
  return { encode: () => [1], decode: () => texts[n++ %% texts.length] };
} };
export const AutoModelForCausalLM = { async from_pretrained() {
  return async ({ input_ids }) => {
    const data = new Float32Array(8);
    data[input_ids.dims[1] > 1 ? 7 : 1] = 1;
    return { logits: { data } };
  };
} };
""",
}


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


class Pages:
    """The folders of a page below `site`: the exported one, `page`, and copies of it that are changed."""

    def __init__(self, site):
        self.site = Path(site)
        self.settings = json.loads((self.site / "page" / "page.json").read_text())
        self.engine = "onnx" if "dtype" in self.settings["model"] else "gguf"
        files = {key: file["url"] for key, file in self.settings["library"]["files"].items()}
        self.script, self.wasm = files["script"], files["wasm"]
        names = [file["file"] for file in self.settings["model"]["files"]]
        # The weights, and what says how they are used: in a GGUF both in one.
        self.model = names[-1]
        self.head = names[-2] if self.engine == "onnx" else names[-1]

    def read(self, name):
        return (self.site / "page" / name).read_bytes()

    def copy(self, name, without=()):
        """A copy of the page whose files may be replaced."""
        folder, page = self.site / name, self.site / "page"
        for file in page.rglob("*"):
            inside = file.relative_to(page)
            if file.is_file() and inside.as_posix() not in without:
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                os.link(file, folder / inside)
        return folder

    def faults(self):
        """What may happen to the folder, and a word of the sentence that is to be on the page."""
        script, wasm = f"{self.script}, is missing or damaged", f"{self.wasm}, is missing or damaged"
        faults = {
            "no-model": "is not beside the page (the server says 404)",
            "cut-model": "is cut: it has",
            "long-model": "is another one than the page was made for",
            "html-model": "is no model",
            "damaged-model": "The model did not start",
            "no-library": script,
            "other-library": script,
            "no-wasm": wasm,
            "cut-wasm": wasm,
            "no-settings": "page.json, are missing or damaged",
            "html-settings": "page.json, are missing or damaged",
        }
        if self.engine == "onnx":
            faults["no-tokenizer"] = "tokenizer.json, is not beside the page (the server says 404)"
            faults["damaged-tokenizer"] = "The model did not start"
        return faults

    def make_faults(self):
        model, head = self.read(self.model), self.read(self.head)
        self.copy("no-model", [self.model])
        self.copy("no-library", [self.script])
        self.copy("no-wasm", [self.wasm])
        self.copy("no-settings", ["page.json"])
        replace(self.copy("other-library"), self.script, FAKES[self.engine] % "[]")
        replace(self.copy("cut-wasm"), self.wasm, self.read(self.wasm)[:100_000])
        replace(self.copy("html-settings"), "page.json", "<!doctype html><p>Sign in")
        replace(self.copy("cut-model"), self.model, model[: len(model) // 2])
        replace(self.copy("long-model"), self.model, model + b"more")
        replace(self.copy("html-model"), self.model, b"<!doctype html>".ljust(len(model)))
        replace(self.copy("damaged-model"), self.head, head[:200] + bytes(len(head) - 200))
        if self.engine == "onnx":
            tokenizer = "model/tokenizer.json"
            self.copy("no-tokenizer", [tokenizer])
            replace(self.copy("damaged-tokenizer"), tokenizer, self.read(tokenizer)[:-1] + b",")

    def fake(self, folder, texts, change=lambda read: None):
        """Puts a library there that says `texts`, as the one that the page knows."""
        script = (FAKES[self.engine] % json.dumps(texts)).encode()
        replace(folder, self.script, script)
        integrity = "sha384-" + base64.b64encode(hashlib.sha384(script).digest()).decode()

        def known(read):
            read["library"]["files"]["script"]["integrity"] = integrity
            change(read)

        settings(folder, known)

    def make_hostile(self):
        def change(read):
            read["title"], read["example"] = EVIL[1], EVIL[0]
            read["model"]["name"], read["model"]["url"] = EVIL[2], "javascript:alert(1)"
            read["terms"] = {"name": EVIL[0], "url": "data:text/html,<script>alert(1)</script>"}

        self.fake(self.copy("hostile"), [*EVIL, LONG], change)
        self.fake(self.copy("long"), [LONG, "😀" * 5_000, "Z " * 9_000])

    def make_large(self):
        """The page as it is with a large model: nothing is fetched before someone types."""
        folder = self.copy("large")
        script = (folder / "app.js").read_text()
        assert script.count("const SMALL = 16e6;") == 1
        replace(folder, "app.js", script.replace("const SMALL = 16e6;", "const SMALL = 1;"))


def replace(folder, name, data):
    """Puts another file at a name; the copies that share the old one keep it."""
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def settings(folder, change):
    read = json.loads((folder / "page.json").read_text())
    change(read)
    replace(folder, "page.json", json.dumps(read))
