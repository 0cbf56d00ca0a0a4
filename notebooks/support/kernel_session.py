"""One Rust kernel, and whether a cell in it really ran to its end.

evcxr answers "ok" to a cell that ended early, through `?` or a panic: the message is on stderr, as
any warning could be. What tells the two apart is that evcxr keeps no variable of a cell that ended
early. So each cell is run with one line more, `let <marker>: () = ();` before its first line of
Rust, and afterwards the kernel is asked for its variables (`:vars`, which compiles nothing). No
marker, no success. The notebook is saved without any of this.
"""

import json
import os
import queue
import re
import signal
import time

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

# The lines that evcxr takes for commands before a cell's first line of Rust.
COMMAND = re.compile(r"^ *(:[^ ]*)( +(.*))?$")
PANIC = re.compile(r"^thread '.*' (\(\d+\) )?panicked at ", re.MULTILINE)
START_LIMIT = 300  # The first start copies or builds evcxr's own small crate.
MARKER = "__cell_{}_ran_to_its_end"
# The markers in what `:vars` prints, in case a notebook itself asks for it.
MARKERS_SHOWN = re.compile(r"__cell_\d+_ran_to_its_end: \(\)\n|<tr><td>__cell_\d+_ran_to_its_end</td><td>\(\)</td><tr>")
STOP_LIMIT = 10  # How long a cell that took too long may take to stop politely.
LATE_OUTPUT = 1.0  # How long a failed cell's last words may take from the pipe to here.


class KernelFault(Exception):
    """The kernel did not start, or is gone."""


def first_rust_line(source):
    """The index of the first line that evcxr compiles, or None in a cell of commands and comments."""
    for index, line in enumerate(source.splitlines()):
        command = line.startswith("!") or COMMAND.match(line)
        comment = line.startswith("//") or not line.strip() or line.startswith("#![")
        if not command and not comment:
            return index
    return None


def with_marker(source, marker, stamp=None):
    """`source` with the marker's line before its first line of Rust; the file `stamp` is written there."""
    lines = source.splitlines()
    index = first_rust_line(source)
    value = f"{{ let _ = std::fs::write({json.dumps(str(stamp))}, \"\"); }}" if stamp else "()"
    return "\n".join(lines[:index] + [f"let {marker}: () = {value};"] + lines[index:])


class CellResult:
    """What became of a cell: its outputs, and why it failed (None if it did not)."""

    def __init__(self):
        self.outputs = []
        self.failure = None
        self.interrupted = False
        self.kernel_lost = False
        self.compiling = None  # Seconds until the cell's first line ran; see KernelSession.stamp.

    def add(self, output):
        """Appends an output; lines of one stream become one output."""
        last = self.outputs[-1] if self.outputs else None
        if output.output_type == "stream" and last is not None and last.output_type == "stream":
            if last.name == output.name:
                last.text += output.text
                return
        self.outputs.append(output)

    def stream(self, name):
        return "".join(o.text for o in self.outputs if o.output_type == "stream" and o.name == name)


def start_session(kernels, folder, log, kernel="rust", attempts=3):
    """A KernelSession. A kernel compiles a line at its start, and on a busy machine one start in some
    thirty was seen to die of a failed link, so it gets another chance; the reason is printed."""
    for attempt in range(1, attempts + 1):
        try:
            return KernelSession(kernels, folder, log, kernel)
        except KernelFault as fault:
            if attempt == attempts:
                raise
            print(f"{fault}\nstarting the kernel again", flush=True)


class KernelSession:
    """A running kernel. Close it in a `finally`.

    `kernels` is a folder of kernelspecs; None takes those that Jupyter finds by itself.
    """

    def __init__(self, kernels, folder, log, kernel="rust"):
        self.log = open(log, "w")
        self.count = 0
        self.interrupts = 0  # How often the person asked to stop; a signal handler counts.
        self.language_info = {}
        self.stamp = None  # A file that each cell writes when it begins to run, to tell compiling from running.
        chosen = {"kernel_dirs": [str(kernels)]} if kernels else {}
        specs = KernelSpecManager(ensure_native_kernel=False, **chosen)
        self.manager = KernelManager(kernel_name=kernel, kernel_spec_manager=specs)
        self.manager.start_kernel(cwd=str(folder), stdout=self.log, stderr=self.log)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        try:
            self.client.wait_for_ready(timeout=START_LIMIT)
            reply = self.client.kernel_info(reply=True, timeout=30)
        except (RuntimeError, TimeoutError, queue.Empty) as error:
            words = self.last_words()
            self.close()
            raise KernelFault(f"the kernel did not start: {error}. {words}") from None
        self.version = reply["content"]["implementation_version"]
        self.language_info = reply["content"]["language_info"]

    def last_words(self):
        """The end of the kernel's own log, for an error message."""
        self.log.flush()
        with open(self.log.name) as log:
            tail = [line.rstrip() for line in log.readlines()[-8:]]
        return f"Its last words ({self.log.name}): " + " / ".join(tail) if tail else ""

    def close(self):
        """Ends the kernel, and after it whatever of its process group goes on."""
        group = getattr(self.manager.provisioner, "pgid", None)
        try:
            self.client.stop_channels()
            self.manager.shutdown_kernel(now=True)
        finally:
            if group:
                try:
                    os.killpg(group, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass
            self.log.close()

    def run(self, source, on_output, on_wait, timeout):
        """Runs a cell. `on_output` sees each output as it comes, `on_wait` is called now and then."""
        self.count += 1
        marker = MARKER.format(self.count)
        marked = first_rust_line(source) is not None
        started = time.time()
        code = with_marker(source, marker, self.stamp) if marked else source
        result = self._execute(code, on_output, on_wait, timeout)
        if self.stamp and self.stamp.exists():
            result.compiling = self.stamp.stat().st_mtime - started
            self.stamp.unlink()
        if result.failure == "error":
            shell = any(line.startswith("!") for line in source.splitlines())
            died = any("Subprocess terminated" in o.get("evalue", "") for o in result.outputs)
            if died:
                result.failure = "the process that runs the cells ended"
                self.wait_for_late_output(result, on_output)
            elif not marked or shell:
                result.failure = "an error from the kernel"
            else:
                result = self._compile_again(source, on_output, on_wait, timeout)
        elif result.failure is None:
            self._judge(result, marker if marked else None, on_output)
        for output in result.outputs:
            for kind in ("text/plain", "text/html"):
                if kind in output.get("data", {}):
                    output.data[kind] = MARKERS_SHOWN.sub("", output.data[kind])
        return result

    def _compile_again(self, source, on_output, on_wait, timeout):
        """A cell that does not compile has not run: once more, for messages without our line."""
        result = self._execute(source, on_output, on_wait, timeout)
        if result.failure == "error":
            result.failure = "it does not compile"
        elif result.failure is None and result.stream("stderr"):
            result.failure = "it printed to stderr, and could not be checked in another way"
        return result

    def _judge(self, result, marker, on_output):
        """Asks the kernel whether the cell ran to its end, and waits for what it still says."""
        probe = self._execute(":vars", None, None, 60)
        variables = "".join(o.data.get("text/plain", "") for o in probe.outputs if "data" in o)
        if probe.failure:
            result.failure = f"afterwards: {probe.failure}"
        elif marker and not re.search(rf"^{marker}: ", variables, re.MULTILINE):
            result.failure = "it ended early: an error through `?`, or a panic"
            if not result.stream("stderr") and not probe.stream("stderr"):
                self.wait_for_late_output(probe)
        for output in probe.outputs:
            if output.output_type == "stream":
                result.add(output)
                on_output(output)
        self.check_threads(result)

    def check_threads(self, result):
        """A panic outside the cell's own thread leaves no trace but its message."""
        if result.failure is None and PANIC.search(result.stream("stderr")):
            result.failure = "a thread panicked"

    def wait_for_late_output(self, result, on_output=None):
        """Adds what comes in the next second: stderr is not waited for by evcxr, nor are threads."""
        until = time.monotonic() + LATE_OUTPUT
        while time.monotonic() < until:
            try:
                message = self.client.get_iopub_msg(timeout=0.1)
            except queue.Empty:
                continue
            if message["msg_type"] == "stream":
                output = nbformat.v4.output_from_msg(message)
                result.add(output)
                if on_output:
                    on_output(output)

    def _execute(self, code, on_output, on_wait, timeout):
        """Runs `code`; `failure` is "error" for an error reply, a sentence for all else."""
        result = CellResult()
        request = self.client.execute(code, store_history=True, allow_stdin=False, stop_on_error=False)
        started = heard = time.monotonic()
        stop_by = None
        reply, idle = None, False
        while not (reply and idle):
            message = self._next_message(request)
            now = time.monotonic()
            if message:
                heard = now
                idle = self._take(message, result, on_output) or idle
            elif not self.manager.is_alive():
                result.failure, result.kernel_lost = f"the kernel died. {self.last_words()}", True
                return result
            elif on_wait:
                on_wait(now - started)
            reply = reply or self._reply(request)
            if reply and now - heard > 10:
                break  # Its "idle" got lost; the reply says all there is to know.
            if self.interrupts and not result.interrupted:
                result.interrupted, result.failure = True, "interrupted"
                print("\ninterrupt: the cell is asked to stop; once more stops it at once", flush=True)
                self.manager.interrupt_kernel()
            elif self.interrupts > 1:
                stop_by = 0
            elif timeout and now - started > timeout and stop_by is None:
                result.failure = f"it took longer than {timeout:g} s"
                stop_by = now + STOP_LIMIT
                self.manager.interrupt_kernel()
            if stop_by is not None and now > stop_by:
                result.kernel_lost = True
                return result
        if result.failure is None and reply["content"]["status"] != "ok":
            result.failure = "error"
        return result

    def _take(self, message, result, on_output):
        """Puts a message's output into `result`; True if it says that the kernel is done."""
        kind = message["msg_type"]
        if kind == "status":
            return message["content"]["execution_state"] == "idle"
        if kind in ("stream", "execute_result", "display_data", "error"):
            output = nbformat.v4.output_from_msg(message)
            result.add(output)
            if on_output and kind != "error":
                on_output(output)
        return False

    def _next_message(self, request):
        """The next message that belongs to `request`; None if there is none for a moment."""
        try:
            message = self.client.get_iopub_msg(timeout=0.2)
        except queue.Empty:
            return None
        # A line that a thread of an earlier cell printed late goes to the cell that runs now.
        ours = message["parent_header"].get("msg_id") == request
        if ours or message["msg_type"] == "stream":
            return message
        return {"msg_type": "other", "content": {}}

    def _reply(self, request):
        try:
            message = self.client.get_shell_msg(timeout=0)
        except queue.Empty:
            return None
        return message if message["parent_header"].get("msg_id") == request else None
