"""Notebooks that fail, each in its own way, and what `notebooks/run` makes of them.

    python3 notebooks/support/test_runner.py [--without CLASS | CLASS…]

Each test runs the command as a person would, and reads its exit code, what it printed and the
notebook that it left. Uses only what the kernel itself needs, not the crate.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree as xml
from pathlib import Path

import junit
import launch_kernel
import light_metadata

RUN = Path(__file__).resolve().parent.parent / "run"


def notebook(*cells):
    """A notebook's JSON: a string is a code cell, a pair (string, tag) a tagged one."""
    made = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# A test"}]
    for number, cell in enumerate(cells):
        source, tags = cell if isinstance(cell, tuple) else (cell, None)
        metadata = {"tags": [tags]} if tags else {}
        made.append(
            {
                "cell_type": "code",
                "id": f"cell-{number}",
                "metadata": metadata,
                "source": source,
                "outputs": [{"output_type": "stream", "name": "stdout", "text": "of an earlier run\n"}],
                "execution_count": 77,
            }
        )
    return {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


class Run:
    """One call of `notebooks/run` on cells; `.code`, `.log`, `.cells` (the executed ones)."""

    def __init__(self, *cells, options=(), interrupt_at=(), variables=None):
        moments = list(interrupt_at)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "it.ipynb"
            path.write_text(json.dumps(notebook(*cells)))
            process = subprocess.Popen(
                [RUN, path, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, **(variables or {})},
            )
            log = []
            for line in process.stdout:
                log.append(line)
                if moments and moments[0] in line:
                    moments.pop(0)
                    process.send_signal(signal.SIGINT)
            self.code = process.wait()
            process.stdout.close()
            self.log = "".join(log)
            executed = Path(folder) / "out" / "it.ipynb"
            self.html = (Path(folder) / "out" / "it.html").read_text() if executed.exists() else ""
            read = json.loads(executed.read_text())["cells"] if executed.exists() else []
            self.cells = [cell for cell in read if cell["cell_type"] == "code"]
            # Everything that was written beside the notebook, to search.
            self.written = b"".join(p.read_bytes() for p in Path(folder).rglob("*") if p.is_file())
            self.left = sorted(p.name for p in (Path(folder) / "out").iterdir()) if executed.exists() else []

    def text(self, number, kind="stdout"):
        outputs = self.cells[number]["outputs"]
        return "".join("".join(o["text"]) for o in outputs if o.get("name") == kind)


class Places(unittest.TestCase):
    """Results never replace what is no result."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = Path(self.folder.name) / "it.ipynb"
        self.text = json.dumps(notebook("1 + 1"))
        self.path.write_text(self.text)

    def run_to(self, out):
        run = subprocess.run([RUN, self.path, "--out", out], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return run.returncode, run.stdout

    def refused(self, out, reason):
        code, log = self.run_to(out)
        self.assertEqual(code, 2, log)
        self.assertIn(reason, log)
        self.assertEqual(self.path.read_text(), self.text)

    def test_not_over_the_notebook_itself(self):
        self.refused(self.path.parent, "is the notebook itself")
        link = Path(self.folder.name) / "link"
        link.symlink_to(self.path.parent)
        self.refused(link, "is the notebook itself")

    def test_not_over_a_persons_own_files(self):
        out = Path(self.folder.name) / "out"
        out.mkdir()
        mine = out / "it.ipynb"
        mine.write_text(json.dumps(notebook("let mine = 1;")))
        before = mine.read_text()
        self.refused(out, "no result of an earlier run")
        self.assertEqual(mine.read_text(), before)
        mine.unlink()
        page = out / "it.html"
        page.write_text("my page")
        self.refused(out, "no result of an earlier run")
        self.assertEqual(page.read_text(), "my page")

    def test_results_are_replaced_until_someone_edits_them(self):
        out = Path(self.folder.name) / "out"
        self.assertEqual(self.run_to(out)[0], 0)
        self.path.write_text(self.text.replace("1 + 1", "1 + 2"))
        self.text = self.path.read_text()
        self.assertEqual(self.run_to(out)[0], 0, "the notebook has changed, its result has not")
        self.assertEqual(sorted(p.name for p in out.iterdir()), ["it.html", "it.ipynb"])
        result = out / "it.ipynb"
        result.write_text(result.read_text().replace("1 + 2", "my own note"))
        self.refused(out, "no result of an earlier run")
        self.assertIn("my own note", result.read_text())


class Failing(unittest.TestCase):
    def fails(self, reason, *cells, at=1, **options):
        """Runs `cells`; cell number `at` (from 0) must be the one that stops the run."""
        run = Run(*cells, **options)
        self.assertEqual(run.code, 1, run.log)
        self.assertIn(f"FAILED: {reason}", run.log)
        self.assertIn(f"cell {at + 1} failed", run.log)
        for number, cell in enumerate(run.cells):
            ran = number <= at
            self.assertEqual(cell["execution_count"], number + 1 if ran else None)
            if not ran:
                self.assertEqual(cell["outputs"], [], "a cell after the failed one has outputs")
        self.assertEqual(run.left, ["it.html", "it.ipynb"])
        return run

    def test_error_through_question_mark(self):
        run = self.fails(
            "it ended early",
            "let text = String::from(\"abc\");",
            'println!("before");\nlet n: i32 = text.parse()?;\nprintln!("after {n}");',
            'println!("never");',
        )
        self.assertEqual(run.text(1), "before\n")
        self.assertIn("invalid digit", run.text(1, "stderr"))

    def test_error_in_a_cell_without_variables(self):
        self.fails("it ended early", ":vars\n// only this\n\"abc\".parse::<i32>()?;", at=0)

    def test_panic_and_what_integration_is_told(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "new" / "cells.xml"
            cells = ("let v = vec![1];", "// <third> & last\nv[3]", "v.len()")
            told = {"GITHUB_ACTIONS": "true"}
            run = self.fails("it ended early", *cells, options=["--junit", file], variables=told)
            self.assertIn("index out of bounds", run.text(1, "stderr"))
            suite = xml.parse(file).getroot().find("testsuite")
            self.assertEqual([suite.get(name) for name in ("name", "tests", "failures", "skipped")], ["it", "3", "1", "1"])
            first, second, third = suite.findall("testcase")
            self.assertEqual(second.get("name"), "2: A test: <third> & last")
            self.assertEqual([child.tag for case in (first, second, third) for child in case], ["failure", "skipped"])
            self.assertIn("index out of bounds", second.find("failure").text)
            annotations = [line for line in run.log.splitlines() if line.startswith("::")]
            self.assertEqual(len(annotations), 1, run.log)
            self.assertRegex(annotations[0], r"^::error file=.*it\.ipynb,title=cell 2 failed::it ended early")

    def test_compile_error(self):
        run = self.fails("it does not compile", "let a = 1;", "// comment\nlet b: i32 = \"text\";\nb", "a")
        error = next(o for o in run.cells[1]["outputs"] if o["output_type"] == "error")
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"]))
        self.assertIn("mismatched types", trace)
        self.assertNotIn("ran_to_its_end", trace)
        self.assertRegex(trace, r"(?m)^ *2 . let b: i32", "line 2 of the cell as written")

    def test_process_exit(self):
        run = self.fails("the process that runs the cells ended", "1", 'println!("bye");\nstd::process::exit(0);', "1")
        # The kernel has it either as the cell's output or in its own words about the end.
        self.assertIn("bye", json.dumps(run.cells[1]["outputs"]))

    def test_endless_loop(self):
        started = time.monotonic()
        run = self.fails(
            # On a busy machine a first cell alone compiles for longer than one would wait for a loop.
            "it took longer than 20 s",
            'println!("in");\nlet mut i = 0u64;\nloop { i = std::hint::black_box(i + 1); if i == 0 { break } }',
            "1",
            at=0,
            options=["--timeout", "20"],
        )
        self.assertEqual(run.text(0), "in\n")
        self.assertLess(time.monotonic() - started, 120)

    def test_endless_output(self):
        self.fails(
            "it took longer than 8 s",
            'let mut i = 0; loop { i += 1; println!("{i}"); std::thread::sleep(std::time::Duration::from_millis(50)); if i < 0 { break } }',
            at=0,
            options=["--timeout", "8"],
        )

    def test_thread_that_panics(self):
        self.fails("a thread panicked", 'std::thread::spawn(|| panic!("in a thread")).join().is_err()', "1", at=0)

    def test_thread_that_panics_late(self):
        late = "std::thread::spawn(|| { std::thread::sleep(std::time::Duration::from_millis(400)); panic!() });"
        self.fails("a thread panicked", "1", late)

    def test_unknown_command(self):
        self.fails("an error from the kernel", ":nosuchcommand", "1", at=0)

    def test_dependency_that_is_not_there(self):
        self.fails("it does not compile", ':dep nothing = { path = "no/such/folder" }\n1', "1", at=0)

    def test_kernel_killed(self):
        self.fails("the kernel died", "1", "!kill -9 $PPID", "1")

    def test_interrupt(self):
        endless = 'println!("in");\nlet mut i = 0u64;\nloop { i = std::hint::black_box(i + 1); if i == 0 { break } }'
        # This cell does not listen to the first; the line that says so calls for the second.
        self.fails("interrupted", endless, "1", at=0, interrupt_at=["| in", "once more stops it at once"])


class Passing(unittest.TestCase):
    def test_what_is_shown_and_saved(self):
        run = Run(
            "let x = 41;",
            "// a comment\nx + 1",
            'eprintln!("a warning");\nprintln!("a line");',
            "fn double(a: i32) -> i32 {\n    a * 2\n}",
            'let v: Vec<i32> = "1 2".split(\' \').map(|t| t.parse()).collect::<Result<_, _>>()?;\ndouble(v[1])',
            ":vars",
            'println!("EVCXR_BEGIN_CONTENT text/html\\n<svg id=\\"drawn\\"></svg>\\nEVCXR_END_CONTENT");',
        )
        self.assertEqual(run.code, 0, run.log)
        self.assertIn("7 cells ran to their end, 0 failed", run.log)
        self.assertIn("| 42\n", run.log)
        self.assertIn("| a line\n", run.log)
        self.assertEqual([cell["execution_count"] for cell in run.cells], list(range(1, 8)))
        self.assertEqual(run.text(2), "a line\n")
        self.assertEqual(run.text(2, "stderr"), "a warning\n")
        saved = json.dumps(run.cells)
        self.assertNotIn("ran_to_its_end", saved)
        self.assertNotIn("of an earlier run", saved)
        self.assertIn("x: i32", saved)
        self.assertIn('<svg id="drawn">', run.html)

    def test_tagged_cell_may_fail(self):
        run = Run(("\"a\".parse::<i32>()?;", "raises-exception"), 'println!("goes on");')
        self.assertEqual(run.code, 0, run.log)
        self.assertEqual(run.text(1), "goes on\n")

    def test_token_stays_out(self):
        marker = "hf_MARKERmarkerMARKERmarker0123456789"
        run = Run(
            'println!("length {}", std::env::var("HF_TOKEN")?.len());',
            ("// how a prompt is answered by a run without a front end\n"
             'println!("EVCXR_INPUT_REQUEST_PASSWORD:Hugging Face token?");\n'
             "let mut typed = String::new();\nstd::io::stdin().read_line(&mut typed)?;\n"
             'println!("typed {:?}", typed.trim());'),
            ('std::env::var("HF_TOKEN")?.parse::<i32>()?;', "raises-exception"),
            ('panic!("token: {}", std::env::var("HF_TOKEN").is_ok())', "raises-exception"),
            ":vars",
            variables={"HF_TOKEN": marker},
        )  # fmt: skip
        self.assertEqual(run.code, 0, run.log)
        self.assertEqual(run.text(0), f"length {len(marker)}\n")
        self.assertIn('typed ""', run.text(1), "a prompt that nobody can answer ends at once")
        self.assertIn(b"length 37", run.written, "the outputs are in what is searched")
        for name, content in (("log", run.log.encode()), ("notebook, html, other files", run.written)):
            self.assertNotIn(b"MARKERmarker", content, name)

    def test_settings_reach_the_notebook(self):
        defaults = (
            'let gemma_model = "embedded"; // Or another.\nlet custom_dataset_path = "";\n'
            "let max_rows: usize = usize::MAX;\nlet num_train_epochs = 3.0;\nlet seed: u64 = 42;\n"
            'let send_it = false;\nlet output_dir = "out";\nlet rate = 5e-5;'
        )
        show = 'println!("{gemma_model} {custom_dataset_path} {} {num_train_epochs:?} {seed} {send_it} {output_dir} {rate}", max_rows + 1);'
        awkward = 'a "b"\\ {c}\u202e'
        options = ["--data", __file__, "--rows", "64", "--epochs", "1", "-p", "seed", "7", "--set", "rate=1e-3"]
        run = Run((defaults, "parameters"), show, options=options, variables={"EMOJI_LAB_MODEL": awkward, "EMOJI_LAB_PUSH": "yes"})
        self.assertEqual(run.code, 0, run.log)
        self.assertEqual(run.text(2), f"{awkward} {Path(__file__).resolve()} 65 1.0 7 true out 0.001\n")
        self.assertEqual(run.cells[1]["metadata"]["tags"], ["injected-parameters"])
        self.assertEqual(len(run.cells[1]["source"].splitlines() if isinstance(run.cells[1]["source"], str) else run.cells[1]["source"]), 8)
        self.assertNotIn("output_dir", "".join(run.cells[1]["source"]), "what is as it was is not set again")
        # A notebook that reads the environment itself is given it, too.
        own = Run('println!("{}", std::env::var("EMOJI_LAB_ROWS").unwrap());', options=["--rows", "64"])
        self.assertEqual((own.code, own.text(0)), (0, "64\n"), own.log)

    def test_values_of_another_kind_are_named(self):
        run = Run(("let max_rows: usize = 5;", "parameters"), "max_rows", variables={"EMOJI_LAB_ROWS": "-1"})
        self.assertEqual(run.code, 2, run.log)
        self.assertIn("EMOJI_LAB_ROWS=-1: max_rows is 5 by default", run.log)
        run = Run(("let max_rows: usize = 5;", "parameters"), "max_rows", options=["--set", "row=1"])
        self.assertEqual(run.code, 2, run.log)
        self.assertIn("it.ipynb has no parameter row; it has max_rows", run.log)


class CommandLine(unittest.TestCase):
    def refuses(self, says, *arguments):
        done = subprocess.run([RUN, *arguments], capture_output=True, text=True)
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        self.assertIn(says, done.stderr)

    def test_no_such_notebook(self):
        self.refuses("there is no such notebook", "no-such.ipynb")

    def test_no_such_model_or_data(self):
        self.refuses("no such file or folder", "--model", "./no-such-model.gguf")
        self.refuses("no such file or folder", "--data", "no-such.csv")

    def test_a_report_replaces_nothing_but_a_report(self):
        with tempfile.TemporaryDirectory() as folder:
            mine, report = Path(folder) / "mine.xml", Path(folder) / "report.xml"
            mine.write_text("<poem/>")
            report.write_bytes(junit.report("it", [], [], ""))
            self.assertTrue(junit.is_ours_to_replace(report) and junit.is_ours_to_replace(Path(folder) / "new.xml"))
            for place in (mine, folder):
                self.refuses("it is there and no JUnit file", "--junit", place)

    def test_malformed_setting(self):
        self.refuses("expected NAME=VALUE", "--set", "seed")


class Integration(unittest.TestCase):
    def test_texts_that_are_anyones_stay_texts(self):
        titles = ["a \x1b[31m\x00 ]]> <b>", "after"]
        report = junit.report("n\ud800", [(1, titles[0], 1.5, "it \x07 failed", None)], titles, "said \x0b &amp;")
        suite = xml.fromstring(report).find("testsuite")
        case = suite.find("testcase")
        self.assertEqual(case.get("name"), "1: a ⟨U+001B⟩[31m⟨U+0000⟩ ]]> <b>")
        self.assertEqual((case.find("failure").get("message"), case.find("failure").text), ("it ⟨U+0007⟩ failed", "said ⟨U+000B⟩ &amp;"))
        told = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": "/w"}
        line = junit.annotation("/w/a,b::c.ipynb", 2, "100 %\n::stop", told)
        self.assertEqual(line, "::error file=a%2Cb%3A%3Ac.ipynb,title=cell 2 failed::100 %25%0A::stop")
        self.assertIsNone(junit.annotation("it.ipynb", 2, "failed", {}))


class LightMetadata(unittest.TestCase):
    """What rust-analyzer is told: see light_metadata.py."""

    def test_only_what_cells_can_name_is_left(self):
        below = {
            "ctx": ["emoji_lab", "regex"],
            "emoji_lab": ["candle-core", "hf-hub", "regex"],
            "candle-core": ["gemm"],
            "regex": ["regex-syntax"],
            "hf-hub": ["reqwest"],
            "gemm": [],
            "reqwest": [],
            "regex-syntax": [],
        }
        node = lambda name: {"id": name, "deps": [{"pkg": d} for d in below[name]], "dependencies": below[name]}
        metadata = {
            "packages": [{"id": name, "name": name} for name in below],
            "resolve": {"root": "ctx", "nodes": [node(name) for name in below]},
        }
        light = light_metadata.lighten(metadata)
        left = {"ctx", "emoji_lab", "candle-core", "regex", "regex-syntax"}
        self.assertEqual({package["id"] for package in light["packages"]}, left)
        for node in light["resolve"]["nodes"]:
            self.assertIn(node["id"], left)
            self.assertLessEqual(set(node["dependencies"]), left)
            self.assertEqual([d["pkg"] for d in node["deps"]], node["dependencies"])

    def test_the_toolchain_is_the_real_one_but_for_metadata(self):
        sysroot = launch_kernel.rustc("--print", "sysroot")
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "made"
            for _ in range(2):
                self.assertTrue(light_metadata.toolchain(made, sysroot, sys.executable))
            self.assertEqual([entry.name for entry in Path(folder).iterdir()], ["made"])
            ours, real = made / "bin" / "cargo", Path(sysroot) / "bin" / "cargo"
            ask = lambda cargo, *what: subprocess.run([cargo, *what], capture_output=True, text=True, check=True).stdout
            self.assertEqual(ask(ours, "--version"), ask(real, "--version"))
            manifest = ("metadata", "--format-version", "1", "--manifest-path", str(RUN.parent.parent / "Cargo.toml"))
            # The workspace itself: nothing is below a root, and nothing is taken out.
            self.assertEqual(json.loads(ask(ours, *manifest)), json.loads(ask(real, *manifest)))


class UsersKernel(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name) / "kernels" / "rust"

    def call(self, option):
        env = dict(clean_environment(), JUPYTER_DATA_DIR=str(self.folder.parent.parent))
        done = subprocess.run([RUN, option], capture_output=True, text=True, env=env)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_installed_and_removed(self):
        for _ in range(2):
            self.call("--install-kernel")
        spec = json.loads((self.folder / "kernel.json").read_text())
        self.assertEqual((spec["language"], spec["interrupt_mode"]), ("rust", "signal"))
        self.assertTrue((self.folder / "version.txt").exists(), "without it evcxr writes its own kernel.json")
        self.call("--uninstall-kernel")
        self.assertFalse(self.folder.exists())
        self.assertIn("no kernel of ours", self.call("--uninstall-kernel"))

    def test_another_one_comes_back(self):
        self.folder.mkdir(parents=True)
        other = '{"argv": ["evcxr_jupyter"], "display_name": "Other", "language": "rust"}'
        (self.folder / "kernel.json").write_text(other)
        for _ in range(2):
            self.assertIn(str(self.folder), self.call("--install-kernel"))
        self.call("--uninstall-kernel")
        self.assertEqual((self.folder / "kernel.json").read_text(), other)
        self.assertIn("no kernel of ours", self.call("--uninstall-kernel"))


class BuildDirectories(unittest.TestCase):
    def test_what_is_not_optimised_is_the_same_in_both_builds(self):
        manifest = (RUN.parent.parent / "Cargo.toml").read_text()
        table = manifest.split("[profile.release.package]\n")[1].split("\n\n")[0]
        self.assertEqual(re.findall(r"^(\S+) = { opt-level = 0 }$", table, re.MULTILINE), launch_kernel.LEVELS[0].split())

    def test_another_checkouts_library_is_not_taken_for_ours(self):
        with tempfile.TemporaryDirectory() as folder:
            slot, checkouts = Path(folder) / "1", [Path(folder) / name for name in ("a", "b")]
            built = [slot / "target" / part / ".fingerprint" for part in ("debug", "x86_64-unknown-linux-gnu/debug")]
            for checkout in checkouts:
                (checkout / "notebooks").mkdir(parents=True)
                (checkout / "emoji_lab").mkdir()
                (checkout / "emoji_lab" / "Cargo.toml").write_text("")

            def left(notebook):
                """How many crates are still built when a notebook of `notebook` starts, ours and another."""
                for part in built:
                    for name in ("emoji_lab-12ab", "candle-core-34cd"):
                        (part / name).mkdir(parents=True, exist_ok=True)
                launch_kernel.forget_another_crate(slot, notebook)
                return [sum(1 for part in built for _ in part.glob(f"{name}-*")) for name in ("emoji_lab", "candle-core")]

            first, second = (checkout / "notebooks" for checkout in checkouts)
            self.assertEqual(left(first), [0, 2])  # Nobody knows whose it is.
            self.assertEqual(left(first), [2, 2])
            self.assertEqual(left(second), [0, 2])
            self.assertEqual(left(second), [2, 2])
            self.assertEqual(left(Path(folder)), [2, 2])  # A notebook that lies beside no crate.
            self.assertEqual(left(first), [0, 2])

    def test_two_kernels_at_once(self):
        show = 'println!("dir {}", std::env::var("EVCXR_TMPDIR").unwrap_or_default());'
        hold = show + "\nstd::thread::sleep(std::time::Duration::from_secs(20));"
        with tempfile.TemporaryDirectory() as folder:
            first, second = Path(folder) / "first.ipynb", Path(folder) / "second.ipynb"
            first.write_text(json.dumps(notebook(hold)))
            second.write_text(json.dumps(notebook(show)))
            one = subprocess.Popen([RUN, first], stdout=subprocess.PIPE, text=True, env=clean_environment())
            seen = next(line for line in one.stdout if "| dir " in line)
            two = subprocess.run([RUN, second], capture_output=True, text=True, env=clean_environment())
            rest = one.stdout.read()
            one.stdout.close()
            self.assertEqual((one.wait(), two.returncode), (0, 0), rest + two.stdout)
            other = next(line for line in two.stdout.splitlines() if "| dir " in line)
            self.assertNotEqual(seen.split()[-1], other.split()[-1])


def clean_environment():
    return {name: value for name, value in os.environ.items() if name != "EVCXR_TMPDIR"}


def main():
    """As unittest does it; `--without CLASS` takes all classes but one."""
    if sys.argv[1:2] == ["--without"]:
        classes = [name for name, kind in globals().items() if isinstance(kind, type) and issubclass(kind, unittest.TestCase)]
        classes.remove(sys.argv[2])
        sys.argv[1:] = classes
    unittest.main(verbosity=2)


if __name__ == "__main__":
    main()
