"""The teacher's folder: Rust, the crates' sources, this repository, Jupyter, the kernel and the compiled crate, to be read by all.

What a teacher types is in kernel-setup.md, "A class on one machine". What would be downloaded or compiled for half an
hour is taken from what this machine has: the same files, so the same set-up goes over them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks" / "support"))
import launch_kernel  # noqa: E402


def copy(source, target, linked=True):
    """A folder, with hard links in place of copies where that works: nothing in it is ever written to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not linked or subprocess.run(["cp", "-al", source, target], stderr=subprocess.DEVNULL).returncode:
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "-a", source, target], check=True)


class Teacher:
    """A folder `folder` of the teacher; `environment` is what everybody's commands get of it."""

    def __init__(self, folder, home, python):
        self.folder, self.home = folder, folder / "home"
        self.repository, self.jupyter = folder / "repository", folder / "share" / "jupyter"
        self.fill(home)
        path = [folder / "cargo" / "bin", Path(python).parent, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        self.environment = {
            "RUSTUP_HOME": str(folder / "rustup"), "CARGO_HOME": str(folder / "cargo"), "EMOJI_LAB_HOME": str(self.home),
            "PATH": os.pathsep.join(map(str, path)), "JUPYTER_PATH": str(self.jupyter), "RUSTUP_TOOLCHAIN": self.toolchain,
            # Crates and models are what is here: a class does not wait for thirty downloads.
            "CARGO_NET_OFFLINE": "true", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip

    def fill(self, home):
        sysroot = Path(launch_kernel.rustc("--print", "sysroot"))
        self.toolchain = sysroot.name
        cargo = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
        copy(sysroot, self.folder / "rustup" / "toolchains" / sysroot.name)
        shutil.copy2(sysroot.parents[1] / "settings.toml", self.folder / "rustup" / "settings.toml")
        (self.folder / "rustup" / "update-hashes").mkdir()  # rustup makes it where it is missing, which students may not.
        copy(cargo / "bin", self.folder / "cargo" / "bin")
        copy(cargo / "registry", self.folder / "cargo" / "registry")
        for name in subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
            if name and (ROOT / name).exists():
                (self.repository / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.repository / name)
        # Not below root's home, where students cannot read. A virtual environment's Python may be moved, its scripts not.
        copy(Path(sys.prefix), self.folder / "hub", linked=False)
        if (home / "cargo").exists():
            copy(home / "cargo" / "bin", self.home / "cargo" / "bin", linked=False)
        _, key = launch_kernel.host_and_key(launch_kernel.rustc("-vV"))
        if (home / "build" / key / "1").exists():
            (self.home / "build" / key).mkdir(parents=True)
            launch_kernel.copy_seed(home / "build" / key / "1", self.home / "build" / key / "1")

    def set_up(self):
        """The two commands of the recipe; returns what they printed."""
        env = {**os.environ, **self.environment, "JUPYTER_DATA_DIR": str(self.jupyter), "CARGO_NET_OFFLINE": "false"}
        env.pop("EVCXR_TMPDIR", None)
        said = ""
        for option in ("--install-kernel", "--setup"):
            done = subprocess.run([self.repository / "notebooks" / "run", option], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            said += done.stdout
            if done.returncode:
                raise SystemExit(f"class: the teacher's set-up ended with {done.returncode}:\n{said}")
        return said

    def skeleton(self):
        """What every new user begins with: /etc/skel of this class."""
        folder = self.folder / "skel" / "emoji_lab"
        (folder / "notebooks").mkdir(parents=True)
        for name in ("finetune_gemma3_emoji.ipynb", "how_qlora_works.ipynb", "moods.csv"):
            shutil.copy2(self.repository / "notebooks" / name, folder / "notebooks" / name)
        # `../emoji_lab` of a notebook leads to the crate that is compiled already.
        (folder / "emoji_lab").symlink_to(self.repository / "emoji_lab")
        return folder.parent

    def listing(self):
        """Every file of the folder with its size and time of change, to see that nobody changes any."""
        found = {}
        for path in self.folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                found[str(path)] = (status.st_size, status.st_mtime_ns)
        return found
