"""One student: a local user, who opens the lesson on the Hub and runs every cell.

The browser's part is played here by the same requests that JupyterLab makes: a server from the Hub, a session for
the notebook, messages to its kernel.
"""

import asyncio
import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "notebooks" / "support"))
from kernel_session import MARKER, first_rust_line, with_marker  # noqa: E402

NOTEBOOK = "notebooks/finetune_gemma3_emoji.ipynb"
LIMIT = 1500  # Seconds for anything: a class on two cores waits for its turn.


def add_user(name, skeleton):
    subprocess.run(["useradd", "--create-home", "--skel", skeleton, "--shell", "/bin/bash", name], check=True)
    home = Path(pwd.getpwnam(name).pw_dir)
    home.chmod(0o700)
    return home


def remove_user(name):
    """Removes a user that `add_user` made, with what still runs and all files."""
    for number in processes_of(pwd.getpwnam(name).pw_uid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    subprocess.run(["userdel", "--remove", name], stderr=subprocess.DEVNULL)


def processes_of(uid):
    """The processes of a user: number and command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            pass  # It ended meanwhile.
    return found


def megabytes(folder, uid):
    """What files below `folder` take on the disk, each once, links to the teacher's not at all."""
    seen, total = set(), 0
    for place, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(place, name))
            if status.st_uid == uid and status.st_ino not in seen:
                seen.add(status.st_ino)
                total += status.st_blocks * 512
    return total / 1e6


class Student:
    """What a student did: seconds of each part, the kernel's folder and process, what failed."""

    def __init__(self, name, home, hub, token):
        self.name, self.home, self.uid = name, home, pwd.getpwnam(name).pw_uid
        self.hub, self.token = hub, token
        self.server = self.first = self.whole = self.memory = 0.0
        self.cells, self.failed, self.kernel, self.folder, self.kernel_id = 0, [], None, None, None

    async def ask(self, method, path, body=None):
        request = HTTPRequest(
            self.hub + path, method, headers={"Authorization": f"token {self.token}"}, request_timeout=LIMIT, connect_timeout=60,
            body=json.dumps(body) if body is not None else ("" if method == "POST" else None),
        )  # fmt: skip
        return await AsyncHTTPClient().fetch(request, raise_error=False)

    async def open_server(self):
        started = time.monotonic()
        reply = await self.ask("POST", f"/hub/api/users/{self.name}/server")
        assert reply.code in (201, 202), f"{self.name}: the Hub answers {reply.code}: {reply.body[:200]}"
        while not (json.loads((await self.ask("GET", f"/hub/api/users/{self.name}")).body)["servers"].get("") or {}).get("ready"):
            assert time.monotonic() - started < LIMIT, f"{self.name}: no server"
            await asyncio.sleep(0.3)
        self.server = time.monotonic() - started

    async def run_lesson(self):
        at = f"/user/{self.name}"
        notebook = json.loads((await self.ask("GET", f"{at}/api/contents/{NOTEBOOK}?content=1")).body)["content"]
        started = time.monotonic()
        session = {"path": NOTEBOOK, "name": "lesson", "type": "notebook", "kernel": {"name": "rust"}}
        reply = await self.ask("POST", f"{at}/api/sessions", session)
        assert reply.code == 201, f"{self.name}: no session: {reply.code} {reply.body[:200]}"
        kernel = self.kernel_id = json.loads(reply.body)["kernel"]["id"]
        address = HTTPRequest(
            f"ws{self.hub.removeprefix('http')}{at}/api/kernels/{kernel}/channels",
            headers={"Authorization": f"token {self.token}"}, request_timeout=LIMIT, connect_timeout=LIMIT,
        )  # fmt: skip
        self.socket = await websocket_connect(address, max_message_size=100_000_000)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                await self.run_cell("".join(cell["source"]))
                self.first = self.first or time.monotonic() - started
        _, shown = await self.execute(":vars")
        for number in range(1, self.cells + 1):
            if number in self.marked and MARKER.format(number) not in shown:
                self.failed.append(f"cell {number} ended early")
        self.whole = time.monotonic() - started
        self.look_at_kernel()
        self.socket.close()

    marked = frozenset()

    async def run_cell(self, source):
        self.cells += 1
        if first_rust_line(source) is not None:
            self.marked = self.marked | {self.cells}
            source = with_marker(source, MARKER.format(self.cells))
        status, shown = await self.execute(source)
        if status != "ok":
            self.failed.append(f"cell {self.cells}: {shown[-300:]}")

    async def execute(self, code):
        """The reply's status, and all text that was shown."""
        number, shown, status, idle = uuid.uuid4().hex, [], None, False
        await self.socket.write_message(json.dumps({
            "header": {"msg_id": number, "msg_type": "execute_request", "username": self.name, "session": self.name, "version": "5.3"},
            "parent_header": {}, "metadata": {}, "channel": "shell",
            "content": {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False, "stop_on_error": False},
        }))  # fmt: skip
        while not (status and idle):
            read = await asyncio.wait_for(self.socket.read_message(), LIMIT)
            assert read is not None, f"{self.name}: the kernel is gone"
            message = json.loads(read)
            if message["parent_header"].get("msg_id") != number:
                continue
            content, kind = message["content"], message["msg_type"]
            if kind == "execute_reply":
                status = content["status"]
            elif kind == "status":
                idle = idle or content["execution_state"] == "idle"
            elif kind == "stream":
                shown.append(content["text"])
            elif kind in ("display_data", "execute_result"):
                shown.append(content["data"].get("text/plain", ""))
            elif kind == "error":
                shown += content["traceback"] or [content["evalue"]]
        return status, "\n".join(shown)

    def look_at_kernel(self):
        """The kernel's process, its build directory and the memory of all processes of this student."""
        for number, command in processes_of(self.uid).items():
            status = dict(line.split(":", 1) for line in Path(f"/proc/{number}/status").read_text().splitlines() if ":" in line)
            self.memory += int(status.get("VmRSS", "0 kB").split()[0]) / 1000
            if "evcxr_jupyter" in command and "--control_file" in command and not self.kernel:
                self.kernel = number
                variables = Path(f"/proc/{number}/environ").read_bytes().decode().split("\0")
                self.folder = next(v.split("=", 1)[1] for v in variables if v.startswith("EVCXR_TMPDIR="))
