"""Builds by cargo that are seen to go on: which crate of how many, how long still, what comes next.

cargo shows a bar like `Building [=>  ] 12/336: syn, serde` and says `Compiling …` or `Fresh …` of each crate. Both
are read here, from as many builds as run at once; their processes share one jobserver, so that together they use
the machine's cores once. The seconds that each crate takes are those of build_seconds.json, measured by
build_seconds.py; how fast this machine is beside that one shows while it builds.
"""

import collections
import os
import re
import shutil
import subprocess
import sys
import threading
import time

BAR = re.compile(r"^ *Building \[[^\]]*\] (\d+)/(\d+)(?:: (.*))?$")
CRATE = re.compile(r"^ *(Compiling|Fresh) (\S+) v\S+")
FETCHING = re.compile(r"^ *(?:Updating|Downloading|Downloaded|Locking|Blocking) .*")
NOISE = re.compile(r"^ *(Running|Fresh|Compiling|Building|Downloading|Downloaded|Adding|Locking|Updating|Dirty) ")
UNKNOWN_CRATE = 0.5  # Seconds of a crate that is not in the list.
LINE_EVERY = 20  # Seconds between two lines where they cannot be rewritten.


def cores():
    """The cores that this process may use, or what CARGO_BUILD_JOBS says."""
    asked = os.environ.get("CARGO_BUILD_JOBS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Jobserver:
    """A pipe of tokens (GNU make's): a process that is started has one job for itself, and takes a token for each other."""

    def __init__(self, processes):
        self.read, self.write = os.pipe()
        for _ in range(max(0, cores() - processes)):
            self.give()

    def give(self):
        """A process that ended leaves its own job to the others."""
        os.write(self.write, b"+")

    def environment(self):
        pair = f"{self.read},{self.write}"
        return {"CARGO_MAKEFLAGS": f"-j --jobserver-fds={pair} --jobserver-auth={pair}"}

    def close(self):
        os.close(self.read)
        os.close(self.write)


class Build:
    """One cargo command. `seconds` maps names of crates to what each takes."""

    def __init__(self, name, command, seconds, cwd, env):
        self.name, self.command, self.cwd, self.env = name, [str(word) for word in command], cwd, env
        self.seconds, self.total, self.count = seconds, 0, 0
        self.active, self.fresh, self.begun, self.fetching = {}, set(), set(), ""
        self.said = collections.deque(maxlen=200)
        self.code, self.process, self.reader = None, None, None

    def start(self, jobserver):
        env = {
            **self.env, **jobserver.environment(), "CARGO_TERM_COLOR": "never",
            "CARGO_TERM_PROGRESS_WHEN": "always", "CARGO_TERM_PROGRESS_WIDTH": "400",
        }  # fmt: skip
        self.process = subprocess.Popen(
            self.command, cwd=self.cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, pass_fds=(jobserver.read, jobserver.write),
        )  # fmt: skip
        self.reader = threading.Thread(target=self.read, args=(jobserver,), daemon=True)
        self.reader.start()

    def read(self, jobserver):
        """To the end of what cargo says; then its exit code."""
        rest = b""
        while chunk := os.read(self.process.stderr.fileno(), 65536):
            *pieces, rest = re.split(rb"[\r\n]", rest + chunk)
            for piece in pieces:
                self.take(piece.decode("utf-8", "replace"))
        self.take(rest.decode("utf-8", "replace"))
        self.process.stderr.close()
        self.code = self.process.wait()
        jobserver.give()

    def take(self, line):
        if bar := BAR.match(line.rstrip()):
            self.count, self.total, self.fetching = int(bar[1]), int(bar[2]), ""
            now, names = time.monotonic(), [re.sub(r"\(.*", "", name).strip() for name in (bar[3] or "").split(",")]
            self.active = {name: self.active.get(name, now) for name in names if name and name != "..."}
            return
        if crate := CRATE.match(line):
            (self.begun if crate[1] == "Compiling" else self.fresh).add(crate[2])
        elif FETCHING.match(line):
            self.fetching = line.strip()
        if line.strip() and not NOISE.match(line):
            self.said.append(line.rstrip())

    def work(self):
        """Seconds of work that are done, that are left, and that the longest crate takes still."""
        done, left, longest, unfinished = 0.0, 0.0, 0.0, 0
        now = time.monotonic()
        for name in (self.seconds.keys() | self.begun) - self.fresh:
            seconds = self.seconds.get(name, UNKNOWN_CRATE)
            if name in self.begun and name not in self.active:
                done += seconds
                continue
            part = min(0.9 * seconds, now - self.active.get(name, now))
            done, left, unfinished = done + part, left + seconds - part, unfinished + 1
            longest = max(longest, seconds - part)
        left += UNKNOWN_CRATE * max(0, self.total - self.count - unfinished)
        return (done, 0.0, 0.0) if self.code is not None else (done, left, longest)

    def state(self):
        if self.code is not None:
            return f"{self.name} done" if self.code == 0 else f"{self.name} failed"
        if not self.total:
            return f"{self.name}: {self.fetching.lower() or 'starting'}"
        return f"{self.name} {self.count} of {self.total}"

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()


class Other:
    """What is done beside the builds, and is no build: a function."""

    active, total = {}, 0

    def __init__(self, name, function):
        self.name, self.function, self.reader = name, function, None
        self.code, self.result, self.error = None, None, None

    def start(self, _):
        self.reader = threading.Thread(target=self.call, daemon=True)
        self.reader.start()

    def call(self):
        try:
            self.result, code = self.function(), 0
        except Exception as error:
            self.error, code = error, 1
        self.code = code

    def work(self):
        return 0.0, 0.0, 0.0

    def state(self):
        return self.name if self.code is None else f"{self.name} done"

    def stop(self):
        """It ends with this program."""


class Line:
    """What is happening: one line that is rewritten on a terminal, a line now and then elsewhere."""

    def __init__(self, status=None, stream=None):
        self.stream, self.status, self.next = stream or sys.stdout, status, 0.0
        self.rewrites = self.stream.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, text, now=None):
        now = time.monotonic() if now is None else now
        if self.status:
            self.status.write_text(text)
        if self.rewrites:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r\x1b[K" + text[:width])
        elif now >= self.next:
            self.next = now + LINE_EVERY
            self.stream.write(text + "\n")
        self.stream.flush()

    def end(self):
        if self.rewrites:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def minutes(seconds):
    if seconds < 50:
        return f"{max(5, round(seconds / 5) * 5):.0f} s"
    return f"{seconds / 60:.0f} min"


def told(builds, elapsed, then):
    """The line about `builds`, `elapsed` seconds after they began; `then` is what comes after them."""
    done, left, longest = zip(*(build.work() for build in builds))
    # Seconds of work in a second: at first those of the machine that the list is of, which had 2 cores in use.
    rate = (sum(done) + 2.0 * 20) / (elapsed + 20)
    # The longest crate has both cores for itself at the end, as it had when it was measured.
    seconds = max(sum(left) / rate, max(longest) / (rate / 2.0))
    now = [name for build in builds for name in build.active if build.code is None]
    parts = [", ".join(build.state() for build in builds)]
    parts += [f"now {', '.join(now[:3])}"] if now else []
    parts += [f"about {minutes(seconds)} left"] if any(build.total for build in builds) and sum(left) else []
    return "compiling: " + "; ".join(parts + [f"then {then}"])


def run(builds, then, line, optional=None):
    """Runs `builds` at once to their end; those that failed come back. With the first that fails the others are stopped, but for `optional`'s failure."""
    jobserver, started = Jobserver(sum(isinstance(build, Build) for build in builds)), time.monotonic()
    try:
        for build in builds:
            build.start(jobserver)
        while any(build.code is None for build in builds) and not any(build.code for build in builds if build is not optional):
            time.sleep(0.1)
            # What is there already takes a moment, in which nobody needs to be told anything.
            if time.monotonic() - started > 1.5 and any(build.code is None for build in builds):
                line.show("set-up: " + told(builds, time.monotonic() - started, then))
        return [build for build in builds if build.code]
    finally:
        for build in builds:
            build.stop()
        for build in builds:
            if isinstance(build, Build) and build.reader:
                build.reader.join(20)
        line.end()
        jobserver.close()
