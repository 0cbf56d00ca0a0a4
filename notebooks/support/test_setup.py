"""The first minutes: what set-up says while it works, while another one works, and when it cannot.

    python3 notebooks/support/test_setup.py

Each fault is a real one: a full disk is a small one that was filled (needs root), a missing compiler a PATH without
it, a missing network an address where nobody answers, an old Rust a program that says so.
"""

import contextlib
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import cargo_build
import causes
import environment
import launch_kernel
import light_library
import light_metadata
import prebuild

RUN = Path(__file__).resolve().parent.parent / "run"
NOWHERE = "http://127.0.0.1:9"  # Nobody listens there.


class Faults(unittest.TestCase):
    """One sentence each, and 2."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.home = self.folder / "home"

    def says(self, text, environment):
        """Runs the set-up; its last line must be the one sentence."""
        env = {**os.environ, "EMOJI_LAB_HOME": str(self.home), **environment}
        done = subprocess.run([RUN, "--install-kernel"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertRegex(done.stderr, text)

    def path(self, **programs):
        """A PATH of our own, with what the command needs and `programs` (name: text of a script)."""
        folder = self.folder / "bin"
        folder.mkdir()
        for name in ("bash", "env", "dirname", "sh", "rustup", "rustc", "cargo"):
            if name not in programs and (found := shutil.which(name)):
                (folder / name).symlink_to(found)
        (folder / "python3").symlink_to(os.path.realpath(sys.executable))
        for name, text in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return {"PATH": str(folder), "CARGO_HOME": str(self.folder / "no-cargo")}

    def test_no_compiler(self):
        self.says("no C compiler; on Debian and Ubuntu: apt-get install gcc", self.path())

    def test_no_rust(self):
        self.says(r"rustc does not run; install Rust \(https://rustup.rs\)", self.path(rustc="exit 1"))

    def test_an_old_rust(self):
        old = self.path(rustc="echo 'rustc 1.70.0 (90c541806 2023-05-31)'", cc="exit 0")
        self.says(r"Rust 1\.95 or newer is needed, this is 1\.70; with rustup: rustup update stable", old)

    def test_no_network_for_cargo(self):
        cargo = self.folder / "cargo-home"
        cargo.mkdir()
        (cargo / "config.toml").write_text(
            f'[source.crates-io]\nreplace-with = "away"\n[source.away]\nregistry = "sparse+{NOWHERE}/"\n[net]\nretry = 0\n'
        )
        self.says("the kernel: its registry cannot be reached; look at the network", {"CARGO_HOME": str(cargo)})

    def test_no_network_for_pip(self):
        away = {"PIP_INDEX_URL": f"{NOWHERE}/simple", "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull}
        wanted = self.folder / "requirements.txt"
        wanted.write_text("nbformat==5.11.1\n")
        unreachable = "Jupyter's packages .*its registry cannot be reached"
        with mock.patch.dict(os.environ, away), self.assertRaisesRegex(environment.SetupError, unreachable):
            environment.ensure_venv(self.home, wanted)

    def test_one_that_was_cut_off_in_the_middle_is_mended(self):
        wanted = self.folder / "requirements.txt"
        wanted.write_text("")
        python = environment.ensure_venv(self.home, wanted)
        shutil.rmtree(next((self.home / "venv").glob("lib/python*/site-packages/pip")))
        (self.home / "venv" / f"installed-{wanted.name}").unlink()
        self.assertEqual(environment.ensure_venv(self.home, wanted), python)
        self.assertIsNotNone(environment.first_line([str(python), "-m", "pip", "--version"]))

    @contextlib.contextmanager
    def small_disk(self, megabytes):
        place = self.folder / "small"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place]
        if os.geteuid() or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
            self.skipTest("only root may mount a small disk")
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)

    def test_too_small_a_disk_is_refused_before_anything_is_made(self):
        with self.small_disk(40) as self.home:
            self.says(r"the kernel, Jupyter's packages: \d+ MB are needed at .*small, and 4\d MB are free; make room there", {})
            self.assertEqual(sorted(path.name for path in self.home.iterdir()), ["setup.lock"])

    def test_a_disk_that_becomes_full(self):
        with self.small_disk(40) as self.home, mock.patch.object(environment, "ROOM", dict.fromkeys(environment.ROOM, 0)):
            with self.assertRaises(environment.SetupError) as caught:
                environment.ensure_all(self.home)
        self.assertRegex(str(caught.exception), r"the disk is full, \d+ MB are free at .*; make room there, or name a folder")
        self.assertEqual(len(str(caught.exception).splitlines()), 1)

    def test_causes_are_told_apart(self):
        for word, line in {
            "full": "error: failed to write `/x/libsyn.rmeta`: No space left on device (os error 28)",
            "compiler": "error: linker `cc` not found",
            "rust": "error: rustc 1.89.0 is not supported by the following package:",
            "memory": "  process didn't exit successfully: `rustc --crate-name ra_ap_hir_ty` (signal: 9, SIGKILL: kill)",
            "network": "  [6] Could not resolve hostname (Could not resolve host: index.crates.io)",
            "rights": "error: failed to open: /opt/cargo/.package-cache: Permission denied (os error 13)",
        }.items():
            self.assertEqual(causes.cause(["warning: one", line]), word)
            self.assertEqual(len(causes.sentence(word, "the kernel", "/").splitlines()), 1)
        self.assertIsNone(causes.cause(["error[E0308]: mismatched types"]))


class Waiting(unittest.TestCase):
    def test_a_second_set_up_waits_and_shows_the_firsts_progress(self):
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            (home / "setup.status").write_text("set-up: compiling: the kernel 210 of 340; about 3 min left")
            with open(home / "setup.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # An old Rust: it ends as soon as it has its turn.
                (home / "rustc").write_text("#!/bin/sh\necho 'rustc 1.0.0'\n")
                (home / "rustc").chmod(0o755)
                env = {**os.environ, "EMOJI_LAB_HOME": folder, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
                second = subprocess.Popen([RUN, "--install-kernel"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
                lines = [second.stdout.readline(), second.stdout.readline()]
                self.assertEqual(lines[0], "set-up: waiting for another set-up to finish\n")
                self.assertEqual(lines[1], "waiting, another set-up is at work: compiling: the kernel 210 of 340; about 3 min left\n")
                self.assertIsNone(second.poll())
            second.communicate(timeout=60)
            self.assertEqual(second.returncode, 2)


class Progress(unittest.TestCase):
    def build(self, *lines):
        build = cargo_build.Build("the kernel", [], {"syn": 20.0, "serde": 10.0, "ra_ap_hir_ty": 300.0}, None, {})
        for line in lines:
            build.take(line)
        return build

    def test_cargos_bar_is_read(self):
        build = self.build("   Compiling syn v2.0.1", "    Building [=>   ] 1/3: syn, serde(build)")
        self.assertEqual((build.count, build.total, set(build.active)), (1, 3, {"syn", "serde"}))
        self.assertEqual(build.state(), "the kernel 1 of 3")

    def test_what_is_done_and_what_is_left(self):
        lines = ["   Compiling syn v2.0.1", "       Fresh serde v1.0.2", "    Building [=>   ] 2/3: ra_ap_hir_ty"]
        done, left, longest = self.build(*lines).work()
        self.assertAlmostEqual(done, 20.0, delta=1)
        self.assertAlmostEqual(left, 300.0, delta=1)  # serde was there already.
        self.assertAlmostEqual(longest, 300.0, delta=1)

    def test_the_line_says_which_of_how_many_how_long_and_what_is_next(self):
        build = self.build("   Compiling syn v2.0.1", "    Building [=>   ] 2/3: ra_ap_hir_ty")
        text = cargo_build.told([build], 30.0, "the cells")
        self.assertRegex(text, r"^compiling: the kernel 2 of 3; now ra_ap_hir_ty; about \d+ min left; then the cells$")

    def test_a_terminals_line_is_rewritten_and_a_log_has_one_now_and_then(self):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        with mock.patch.dict(os.environ, {"TERM": "xterm"}):
            shown = Terminal()
            line = cargo_build.Line(stream=shown)
            line.show("one"), line.show("two"), line.end()
        self.assertEqual(shown.getvalue(), "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K")
        log = io.StringIO()
        line = cargo_build.Line(stream=log)
        line.show("one", now=1.0), line.show("two", now=5.0), line.show("three", now=30.0)
        self.assertEqual(log.getvalue(), "one\nthree\n")

    def test_real_builds_are_followed_at_once(self):
        """Two small crates, of which one does not compile."""
        with tempfile.TemporaryDirectory() as folder:
            builds = []
            for name, code in (("good", "pub fn f() {}"), ("bad", "pub fn f() -> u8 {}")):
                crate = Path(folder) / name
                (crate / "src").mkdir(parents=True)
                (crate / "Cargo.toml").write_text(f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n')
                (crate / "src" / "lib.rs").write_text(code)
                builds.append(cargo_build.Build(name, ["cargo", "build", "--verbose"], {}, crate, dict(os.environ)))
            good, bad = builds
            self.assertEqual(cargo_build.run([good], "nothing", cargo_build.Line(stream=io.StringIO())), [])
            self.assertEqual((good.code, good.begun), (0, {"good"}))
            self.assertEqual(cargo_build.run([bad], "nothing", cargo_build.Line(stream=io.StringIO())), [bad])
            self.assertIn("mismatched types", "\n".join(bad.said))

    def test_a_crate_that_does_not_compile_stops_nothing_else(self):
        """The notebook's first cell says why; kernel and packages have to be there for that."""
        with tempfile.TemporaryDirectory() as folder:
            line = cargo_build.Line(stream=io.StringIO())
            bad = cargo_build.Build("bad", ["false"], {}, Path(folder), dict(os.environ))
            slow = cargo_build.Other("slow", lambda: time.sleep(1) or "made")
            self.assertEqual(cargo_build.run([bad, slow], "nothing", line, optional=bad), [bad])
            self.assertEqual(slow.result, "made")
            slow = cargo_build.Other("slow", lambda: time.sleep(1) or "made")
            self.assertEqual(cargo_build.run([bad, slow], "nothing", line), [bad])
            self.assertIsNone(slow.result)


class Prebuilt(unittest.TestCase):
    def test_what_is_built_is_what_the_notebook_asks_for(self):
        lesson = RUN.parent / "finetune_gemma3_emoji.ipynb"
        crate = RUN.parent.parent.resolve() / "emoji_lab"
        self.assertEqual(prebuild.asked_for(lesson), f'emoji_lab = {{ path = "{crate}" }}\n')
        self.assertEqual(prebuild.asked_for(lesson, cuda=True), f'emoji_lab = {{ path = "{crate}", features = ["cuda"] }}\n')
        self.assertEqual(prebuild.crate_of(prebuild.asked_for(lesson)), crate)
        with tempfile.TemporaryDirectory() as folder:
            other = Path(folder) / "it.ipynb"
            for text in ("no notebook", json.dumps({"cells": []})):
                other.write_text(text)
                self.assertIsNone(prebuild.asked_for(other))

    def test_an_edit_is_noticed(self):
        with tempfile.TemporaryDirectory() as folder:
            crate, slot = Path(folder) / "emoji_lab", Path(folder) / "1"
            (crate / "src").mkdir(parents=True)
            slot.mkdir()
            (crate / "Cargo.toml").write_text("")
            (crate / "src" / "lib.rs").write_text("")
            line = f'emoji_lab = {{ path = "{crate}" }}\n'
            (slot / "Cargo.lock").write_text("")
            self.assertFalse(prebuild.is_built(slot, line))
            prebuild.note(slot, line, prebuild.newest(crate))
            self.assertTrue(prebuild.is_built(slot, line))
            self.assertFalse(prebuild.is_built(slot, line.replace(" }", ', features = ["cuda"] }')))
            time.sleep(0.01)
            (crate / "src" / "lib.rs").write_text("// edited")
            self.assertFalse(prebuild.is_built(slot, line))


class Versions(unittest.TestCase):
    def test_those_that_are_compiled_come_back_and_no_others_are_touched(self):
        sysroot = launch_kernel.rustc("--print", "sysroot")
        with tempfile.TemporaryDirectory() as folder:
            made, slot = Path(folder) / "made", Path(folder) / "1"
            light_metadata.toolchain(made, sysroot, sys.executable)
            slot.mkdir()
            lock = slot / "Cargo.lock"

            def after(manifest, there, built):
                (slot / "Cargo.toml").write_text(manifest)
                lock.write_text(there)
                (slot / "built.lock").write_text(built)
                subprocess.run([made / "bin" / "cargo", "--version"], cwd=slot, check=True, stdout=subprocess.DEVNULL)
                return lock.read_text()

            asks, built = 'emoji_lab = { path = "/x" }\n', '[[package]]\nname = "emoji_lab"\n'
            self.assertEqual(after(asks, '[[package]]\nname = "ctx"\n', built), built)
            self.assertEqual(after(asks, built + "# as cargo wrote it", built), built + "# as cargo wrote it")
            self.assertEqual(after("[dependencies]\n", "empty", built), "empty")


class KeptCommand(unittest.TestCase):
    """A cell is compiled as the one before, without cargo: see kernel_cargo.sh."""

    MANIFEST = '[package]\nname = "ctx"\nversion = "1.0.0"\nedition = "2024"\n[lib]\ncrate-type = ["cdylib"]\npath = "src/lib.rs"\n'
    SECRET = "hf_MARKERmarker"

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.slot = Path(folder.name).resolve() / "it's 1"
        (self.slot / "src").mkdir(parents=True)
        (self.slot / "Cargo.toml").write_text(self.MANIFEST)
        cargo = Path(launch_kernel.rustc("--print", "sysroot")) / "bin" / "cargo"
        real = self.program("real", f'echo "$1" >>asked-cargo\nexec "{cargo}" "$@"')
        head = light_metadata.HEAD.format(real=f'"{real}"', python="none", light="none")
        self.cargo = self.program("cargo", head.removeprefix("#!/bin/sh\n") + Path(light_metadata.__file__).with_name("kernel_cargo.sh").read_text())

    def program(self, name, text):
        path = self.slot / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def build(self, code, **env):
        """Whether the cell compiled, whether cargo was asked, and what was said on stderr."""
        (self.slot / "src" / "lib.rs").write_text(code)
        asked = self.slot / "asked-cargo"
        asked.unlink(missing_ok=True)
        (self.slot / "so").unlink(missing_ok=True)
        # What compiles the tests, such as CI, may have settings of its own for cargo.
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("CARGO_INCREMENTAL", "CARGO_PROFILE_"))}
        env = {**outside, "EVCXR_EXECUTION_SO_PATH": str(self.slot / "so"), "CARGO_TARGET_DIR": "target",
               "HF_TOKEN": self.SECRET, "CARGO_REGISTRY_TOKEN": self.SECRET, **env}  # fmt: skip
        done = subprocess.run([self.cargo, "build", "--message-format=json"], cwd=self.slot, env=env, capture_output=True, text=True)
        return done.returncode == 0, asked.exists(), done.stderr

    def has(self, text):
        """Whether the library that evcxr is told of holds `text`."""
        return text.encode() in (self.slot / (self.slot / "so").read_text()).read_bytes()

    def test_cargo_is_asked_once(self):
        code = '#[unsafe(no_mangle)] pub static WORDS: &str = "{}";'
        self.assertEqual(self.build(code.format("first words"))[:2], (True, True))
        self.assertEqual(self.build(code.format("second words"))[:2], (True, False))
        self.assertTrue(self.has("second words"))
        compiled, asked, said = self.build("fn broken( {")
        self.assertEqual((compiled, asked), (False, False))
        self.assertIn("error", [json.loads(line)["level"] for line in said.splitlines() if line.startswith('{"$message_type":"diagnostic"')])
        self.assertEqual(self.build(code.format("third words"))[:2], (True, False))
        self.assertTrue(self.has("third words"))

    def test_it_is_asked_again_when_something_changed(self):
        code = "pub fn f() {}"
        self.build(code)
        self.assertEqual(self.build(code, RUSTFLAGS="-Cdebuginfo=0")[:2], (True, True))
        self.assertEqual(self.build(code, RUSTFLAGS="-Cdebuginfo=0")[:2], (True, False))
        (self.slot / "Cargo.toml").write_text(self.MANIFEST.replace("1.0.0", "1.0.1"))
        self.assertEqual(self.build("fn broken( {", RUSTFLAGS="-Cdebuginfo=0")[:2], (False, True))
        self.assertEqual(self.build(code, RUSTFLAGS="-Cdebuginfo=0")[:2], (True, True))
        self.assertEqual(self.build('pub const V: &str = env!("CARGO_PKG_VERSION");', RUSTFLAGS="-Cdebuginfo=0")[:2], (True, False))

    def test_cells_are_optimised_where_somebody_asks(self):
        for asked, done in (("2", "0"), ("3", "3"), ("1", "1")):
            (self.slot / "Cargo.toml").write_text(f"{self.MANIFEST}[profile.dev]\nopt-level = {asked}\nincremental = true\n")
            self.assertEqual(self.build("pub fn f() {}")[:2], (True, True))
            command = (self.slot / "kept-command" / "command").read_text()
            self.assertIn(f"opt-level={done}", command)
            self.assertEqual("incremental=" in command, asked != "2")

    def test_no_secret_of_the_environment_is_kept(self):
        self.build("pub fn f() {}")
        kept = [path for path in (self.slot / "kept-command").iterdir() if self.SECRET in path.read_text()]
        self.assertEqual(kept, [])
        self.assertIn("CARGO_CRATE_NAME", (self.slot / "kept-command" / "command").read_text())


class LightLibrary(unittest.TestCase):
    """What rust-analyzer reads of the standard library: see light_library.py."""

    def test_all_but_the_processors_is_there(self):
        sysroot = Path(launch_kernel.rustc("--print", "sysroot"))
        real = sysroot / "lib/rustlib/src/rust/library"
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "home" / "library"
            for _ in range(2):
                self.assertTrue(light_library.library(made, sysroot))
            self.assertEqual([entry.name for entry in made.parent.iterdir()], ["library"])
            self.assertEqual((made / light_library.PROCESSORS).read_text(), light_library.EMPTY)
            for path in ("core/src/lib.rs", "alloc/src/vec/mod.rs", "std/Cargo.toml", "Cargo.lock"):
                self.assertEqual((made / path).read_bytes(), (real / path).read_bytes())
            # The real one is as it was.
            self.assertIn("pub mod x86_64", (real / light_library.PROCESSORS).read_text())

    def test_a_library_of_another_form_stays_as_it_is(self):
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "library"
            self.assertFalse(light_library.library(made, Path(folder)))
            self.assertFalse(made.exists())


class Seeds(unittest.TestCase):
    """A further build directory: see launch_kernel.copy_seed."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.seed, self.slot = Path(folder.name) / "1", Path(folder.name) / "2"
        deps = self.seed / "target" / "debug" / "deps"
        deps.mkdir(parents=True)
        (deps / "libbig.rlib").write_bytes(b"x" * 100_000)
        (deps / "big.d").write_text("big: src/lib.rs")
        (self.seed / "target" / "debug" / "incremental").mkdir()
        (self.seed / "target" / "debug" / ".fingerprint").mkdir()
        (self.seed / "target" / "debug" / ".fingerprint" / "big").write_text("1")

    def test_libraries_are_linked_and_the_rest_is_copied(self):
        launch_kernel.copy_seed(self.seed, self.slot)
        here, there = (folder / "target" / "debug" for folder in (self.slot, self.seed))
        self.assertTrue((here / "deps" / "libbig.rlib").samefile(there / "deps" / "libbig.rlib"))
        for name in ("deps/big.d", ".fingerprint/big"):
            self.assertFalse((here / name).samefile(there / name))
            self.assertEqual((here / name).stat().st_mtime, (there / name).stat().st_mtime)
        self.assertFalse((here / "incremental").exists())

    def test_one_that_was_filled_before_the_last_build_is_filled_again(self):
        launch_kernel.copy_seed(self.seed, self.slot)
        self.assertFalse(launch_kernel.is_behind(self.slot, self.seed))
        (self.seed / "built.json").write_text("newer")
        self.assertTrue(launch_kernel.is_behind(self.slot, self.seed))
        time.sleep(0.01)
        (self.slot / "built.json").write_text("its own")
        self.assertFalse(launch_kernel.is_behind(self.slot, self.seed))

    def test_another_users_are_linked_by_name(self):
        with mock.patch("os.link", side_effect=PermissionError):
            launch_kernel.copy_seed(self.seed, self.slot)
        library = self.slot / "target" / "debug" / "deps" / "libbig.rlib"
        self.assertTrue(library.is_symlink() and library.read_bytes())


if __name__ == "__main__":
    unittest.main(verbosity=2)
