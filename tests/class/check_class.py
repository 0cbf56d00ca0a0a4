"""A class opens the lesson at once; see tests/class/run. Ends with 1 if a check fails."""

import argparse
import asyncio
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from student import LIMIT, NOTEBOOK, Student, add_user, megabytes, processes_of, remove_user
from teacher import Teacher

HERE = Path(__file__).resolve().parent


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Hub:
    """A running JupyterHub; `with Hub(…) as hub`."""

    def __init__(self, teacher, students, folder):
        port, hub_port, proxy_port = free_ports(3)
        self.address, self.token, self.folder = f"http://127.0.0.1:{port}", secrets.token_hex(32), folder
        environment = {
            **teacher.environment, "CLASS_PORT": str(port), "CLASS_HUB_PORT": str(hub_port), "CLASS_PROXY_PORT": str(proxy_port),
            "CLASS_PROXY": str(HERE / "node_modules" / ".bin" / "configurable-http-proxy"), "CLASS_PASSWORD": secrets.token_hex(16),
            "CLASS_STUDENTS": " ".join(students), "CLASS_PYTHON": str(teacher.folder / "hub" / "bin" / "python"),
            "CLASS_SHARED": " ".join(teacher.environment), "CLASS_TOKEN": self.token, "HOME": str(folder),
            "CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(32),
        }  # fmt: skip
        folder.mkdir()
        self.log = open(folder / "hub.log", "w+")
        command = [Path(sys.executable).parent / "jupyterhub", "--config", HERE / "jupyterhub_config.py"]
        self.process = subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, stdout=self.log, stderr=self.log, start_new_session=True)

    def __enter__(self):
        until = time.monotonic() + 90
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.address}/hub/api/", timeout=5).close()
                return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        words = self.last_words()
        self.__exit__()
        raise SystemExit(f"class: JupyterHub does not answer. Its last words:\n{words}")

    def last_words(self):
        return Path(self.log.name).read_text()[-3000:]

    def __exit__(self, *_):
        # The Hub ends its users' servers and its proxy.
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()


class Checks:
    """Prints a line a check and counts those that failed."""

    def __init__(self):
        self.count = self.failed = 0

    def check(self, what, problems, shown="none"):
        self.count += 1
        self.failed += bool(problems)
        print(f"class: {what}: {'FAILED: ' + '; '.join(map(str, problems))[:1500] if problems else f'ok ({shown})'}", flush=True)


async def whole_class(students):
    """Everybody at once: first the servers, then the lesson."""
    await asyncio.gather(*(student.open_server() for student in students))
    started = time.monotonic()
    ends = await asyncio.gather(*(student.run_lesson() for student in students), return_exceptions=True)
    for student, end in zip(students, ends):
        if isinstance(end, BaseException):
            student.failed.append(f"{type(end).__name__}: {end}")
    return time.monotonic() - started


async def foreign_answers(students):
    """What a student's own token opens of the next one's server; the codes that are not refusals."""
    open_doors = []
    for student, other in zip(students, students[1:] + students[:1]):
        reply = await student.ask("POST", f"/hub/api/users/{student.name}/tokens", {"note": "own"})
        own = Student(student.name, student.home, student.hub, re.search(rb'"token": *"([^"]+)"', reply.body)[1].decode())
        if (await own.ask("GET", f"/user/{student.name}/api/kernels")).code != 200:
            open_doors.append(f"{student.name} does not get to the own server")
        for path in ("api/kernels", f"api/contents/{NOTEBOOK}", f"api/kernels/{other.kernel_id}"):
            code = (await own.ask("GET", f"/user/{other.name}/{path}")).code
            if code not in (403, 404):
                open_doors.append(f"{student.name} gets {code} for {path} of {other.name}")
    return open_doors


def meetings(students):
    """Kernels and files of one student that are another's, too."""
    found = []
    for what, values in (("kernel", [s.kernel for s in students]), ("build directory", [s.folder for s in students])):
        if None in values or len(set(values)) < len(values):
            found.append(f"{what}s: {values}")
    for student in students:
        if student.folder and not Path(student.folder).is_relative_to(student.home):
            found.append(f"{student.name} builds in {student.folder}")
        if not (student.home / "emoji_lab" / "notebooks" / "out").is_dir():
            found.append(f"{student.name} has no results of the own")
        foreign = [p for p in student.home.rglob("*") if not p.is_symlink() and p.stat().st_uid != student.uid]
        found += [f"{path} belongs to user {path.stat().st_uid}" for path in foreign[:3]]
        for other in students:
            look = ["runuser", "-u", student.name, "--", "ls", str(other.home)]
            if other is not student and subprocess.run(look, capture_output=True).returncode == 0:
                found.append(f"{student.name} can look into {other.home}")
    return found


def without_network(name, teacher):
    """A student's lesson by `notebooks/run` where there is no network at all; seconds, exit code, what was printed."""
    home = Path(f"~{name}").expanduser()
    env = ["env", "-i", f"HOME={home}", f"USER={name}", *(f"{key}={value}" for key, value in teacher.environment.items())]
    student = ["runuser", "-u", name, "--", *env, str(teacher.repository / "notebooks" / "run"), str(home / "emoji_lab" / NOTEBOOK)]
    inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *student]
    started = time.monotonic()
    done = subprocess.run(inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=home, timeout=LIMIT)
    return time.monotonic() - started, done.returncode, done.stdout


def table(students, kernels, results):
    print("\n| student | server | first cell | all cells | memory | disk: kernel | disk: what the lesson writes |\n|---|---|---|---|---|---|---|")
    for number, student in enumerate(students, 1):
        seconds = f"{student.server:.1f} s | {student.first:.1f} s | {student.whole:.1f} s"
        print(f"| {number} | {seconds} | {student.memory:.0f} MB | {kernels[student.name]:.0f} MB | {results[student.name]:.0f} MB |")
    print()


def run_class(args, checks, folder, names, made):
    teacher = Teacher(folder / "class", args.home, args.python)
    started = time.monotonic()
    teacher.set_up()
    print(f"class: the teacher's folder was set up in {time.monotonic() - started:.0f} s and takes {megabytes(teacher.folder, 0):.0f} MB, with Rust", flush=True)
    skeleton = teacher.skeleton()
    homes = {}
    for name in names:
        homes[name] = add_user(name, skeleton)
        made.append(name)
    before = teacher.listing()
    with Hub(teacher, names, folder / "hub") as hub:
        students = [Student(name, homes[name], hub.address, hub.token) for name in names[:-1]]
        try:
            wall = asyncio.run(whole_class(students))
            doors = asyncio.run(foreign_answers(students))
        except AssertionError as error:
            raise SystemExit(f"class: {error}\n{hub.last_words()}")
        met = meetings(students)
    results = {student.name: megabytes(student.home / "emoji_lab", student.uid) for student in students}
    kernels = {student.name: megabytes(student.home, student.uid) - results[student.name] for student in students}
    table(students, kernels, results)
    failed = [f"{student.name}: {problem}" for student in students for problem in student.failed]
    checks.check(f"{len(students)} students at once run every cell", failed, f"{students[0].cells} cells each, all done after {wall:.0f} s")
    checks.check("nobody's kernel or files meet another's", met, f"{len(students)} kernels, build directories and homes")
    checks.check("nobody's server opens to another", doors, "403 and 404 only")
    big = [f"{name}: {size:.0f} MB" for name, size in kernels.items() if size > 100]
    checks.check("a student's kernel takes at most 100 MB of disk", big, f"{max(kernels.values()):.0f} MB at most")
    seconds, code, said = without_network(names[-1], teacher)
    problems = [] if code == 0 and ", 0 failed" in said else [f"it ended with {code}: {said[-1200:]}"]
    checks.check("a student without any network runs every cell", problems, f"{seconds:.0f} s, alone")
    after = teacher.listing()
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    checks.check("the teacher's folder is as it was", sorted(changed)[:5], f"{len(before)} files")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--students", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.umask(0o022)
    checks = Checks()
    folder = Path(tempfile.mkdtemp(prefix="emoji_lab-class-", dir=args.folder))
    folder.chmod(0o755)
    mark = folder.name[-4:].lower().replace("_", "x")
    names = [f"pupil-{mark}-{number}" for number in range(1, args.students + 2)]
    made = []  # Users that are ours to remove.
    try:
        run_class(args, checks, folder, names, made)
    finally:
        for name in made:
            remove_user(name)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"class: {checks.count - checks.failed} checks passed, {checks.failed} failed")
    return 1 if checks.failed or not checks.count else 0


if __name__ == "__main__":
    sys.exit(main())
