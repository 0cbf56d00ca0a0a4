"""Executes a notebook in the Rust kernel and saves it; `notebooks/run` is its front door."""

import argparse
import hashlib
import os
import re
import signal
import stat
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from kernel_session import KernelFault, start_session
from environment import home_directory
from launch_kernel import own_home
import junit
import parameters
import timings

SHOWN_LINES = 40  # Of one output; the saved notebook has all of it.
MARK = "emoji_lab_run"  # In the metadata of a notebook that this program executed.
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# What a terminal obeys, or what turns a line around. A cell's own println! and stderr may hold any text.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class Misplaced(Exception):
    """The results would replace something that is no result."""


def cell_titles(notebook):
    """A title for each code cell: the heading above it, and its first line."""
    heading, titles = "", {}
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+ +(.+?) *$", cell.source, re.MULTILINE)
            heading = found[-1] if found else heading
        elif cell.cell_type == "code":
            lines = [line.strip() for line in cell.source.splitlines() if line.strip()]
            titles[index] = ": ".join(filter(None, [heading, lines[0].lstrip("/ ") if lines else ""]))
    return titles


def for_terminal(text):
    """Text without the compiler's colours, and with other control characters shown as numbers."""
    return OBEYED.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", ANSI.sub("", text))


class Printer:
    """Shows a run as it goes on: cells, their output line by line, and that something still runs."""

    def __init__(self, total):
        self.total, self.number, self.partial, self.next_wait = total, 0, "", 0

    def start(self, number, title):
        self.number, self.partial, self.next_wait = number, "", 30
        print(f"[{number:2}/{self.total}] {textwrap.shorten(title, 90, placeholder='…')}", flush=True)

    def output(self, output):
        if output.output_type == "stream":
            *whole, self.partial = (self.partial + output.text).split("\n")
            for line in whole:
                self.line(line)
        elif "text/plain" in output.get("data", {}):
            lines = output.data["text/plain"].rstrip("\n").split("\n")
            for line in lines[:SHOWN_LINES]:
                self.line(line)
            if len(lines) > SHOWN_LINES:
                self.line(f"… {len(lines) - SHOWN_LINES} lines more in the saved notebook")
        else:
            self.line(f"({', '.join(output.get('data', {}))})")

    def line(self, line):
        print(f"        | {for_terminal(line)}", flush=True)

    def wait(self, seconds):
        """A cell without output for a while: a line every 30 s, so that a log shows life."""
        if seconds >= self.next_wait:
            hint = ", compiling the crate takes minutes the first time" if self.number <= 2 else ""
            print(f"        … {seconds:.0f} s{hint}", flush=True)
            self.next_wait += 30

    def end(self, seconds, failure):
        if self.partial:
            self.line(self.partial)
        print(f"        {'FAILED: ' + failure if failure else 'ok'} ({seconds:.1f} s)", flush=True)


def last_lines(outputs):
    """The last lines of each of a cell's outputs, for a log."""
    shown = []
    for output in outputs:
        if output.output_type == "stream":
            kind, text = output.name, output.text
        elif output.output_type == "error":
            kind, text = "error", "\n".join(output.traceback) or output.evalue
        else:
            kind, text = "result", output.data.get("text/plain", ", ".join(output.data))
        # Not splitlines(), which also splits at characters that are to be seen.
        lines = for_terminal(text.replace("\r\n", "\n")).rstrip().split("\n")
        shown.append(textwrap.indent("\n".join(lines[-SHOWN_LINES:]), f"  {kind}: "))
    return "\n".join(shown)


def report_failure(number, cell, result, title):
    """Everything about the cell that stopped the run, for a log."""
    print(f"\ncell {number} failed ({title}): {result.failure}\n")
    for count, line in enumerate(cell.source.splitlines(), 1):
        print(f"  {count:3} {line}")
    print(f"\n{last_lines(result.outputs)}\n", flush=True)


def clean(notebook):
    """Takes old outputs away, so that what a saved notebook shows is of this run."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def language_info(reported):
    """What the kernel says of its language, with the highlighter under the name nbconvert reads."""
    return {**reported, "name": "rust", "pygments_lexer": "rust"}


def code_cells(notebook):
    """The code cells that are run, each with its title."""
    titles = cell_titles(notebook)
    return [(titles[index], cell) for index, cell in enumerate(notebook.cells) if index in titles and cell.source.strip()]


def run_cells(code, session, timeout):
    """Runs the cells of `code_cells` in order, up to the first that fails; returns rows (number, title, seconds, failure, compiling)."""
    printer, rows = Printer(len(code)), []
    for number, (title, cell) in enumerate(code, 1):
        printer.start(number, title)
        started = time.monotonic()
        result = session.run(cell.source, printer.output, printer.wait, timeout)
        if number == len(code) and not result.kernel_lost:
            session.wait_for_late_output(result, printer.output)
            session.check_threads(result)
        seconds = time.monotonic() - started
        cell.execution_count = number
        cell.outputs = result.outputs
        for output in cell.outputs:
            # The kernel counts our questions too.
            if output.output_type == "execute_result":
                output.execution_count = number
            elif output.output_type == "error":
                output.traceback = [re.sub(r"\bcommand_\d+", f"cell {number}", line) for line in output.traceback]
        expected = "raises-exception" in cell.metadata.get("tags", []) and not result.kernel_lost
        failure = None if expected and not result.interrupted else result.failure
        printer.end(seconds, failure)
        rows.append((number, title, seconds, failure, result.compiling))
        if failure:
            report_failure(number, cell, result, title)
            break
    return rows


def marked(notebook):
    """A copy that says that it is the result of a run, which the next run may replace unless it was edited."""
    copy = nbformat.from_dict(notebook)
    copy.metadata[MARK] = fingerprint([cell.source for cell in copy.cells])
    return copy


def fingerprint(sources):
    """A hash of a notebook's cells, to see whether anyone has changed them."""
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def save(notebook, path):
    """The notebook to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.validate(notebook)
    replace(path, nbformat.writes(notebook) + "\n")


def save_html(notebook, path):
    """The notebook as one page that needs nothing beside it."""
    page, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    replace(path, page)


def replace(path, text):
    """`text` to `path`, whole or not at all; with the rights that the file had, or that new files get."""
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~umask)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def of_another_run(path, sources):
    """Whether `path` holds something else than a result: no notebook, other cells, or a result that was edited."""
    try:
        there = nbformat.read(path, as_version=4)
    except Exception:
        return True
    cells = [cell.source for cell in there.cells]
    return cells != sources and there.metadata.get(MARK) != fingerprint(cells)


def check_places(notebook, path, executed, page):
    """Refuses to write over what is no result of an earlier run: the notebook itself, or a person's own file."""
    for place in (executed, page):
        if place.exists() and path.exists() and place.samefile(path):
            raise Misplaced(f"{place} is the notebook itself: name another --out (or --inplace, which writes it once every cell ran)")
        if place.is_dir():
            raise Misplaced(f"{place} is a folder: name another --out")
    if executed.exists() and of_another_run(executed, [cell.source for cell in notebook.cells]):
        raise Misplaced(f"{executed} is there and no result of an earlier run: move it, or name another --out")
    if page.exists() and not executed.exists():
        raise Misplaced(f"{page} is there and no result of an earlier run: move it, or name another --out")


def summary(rows, total):
    """The table of seconds a cell."""
    print("\n  cell  seconds")
    for number, title, seconds, failure, _ in rows:
        mark = "  FAILED" if failure else ""
        print(f"  {number:4}  {seconds:7.1f}  {textwrap.shorten(title, 80, placeholder='…')}{mark}")
    spent = sum(row[2] for row in rows)
    failed = sum(1 for row in rows if row[3])
    left = total - len(rows)
    rest = f", {left} not run" if left else ""
    print(f"  all   {spent:7.1f}  {len(rows) - failed} cells ran to their end, {failed} failed{rest}")


def tell_integration(args, code, rows):
    """The JUnit file, if one is asked for, and GitHub's annotation of the cell that failed."""
    stopped = next((row for row in rows if row[3]), None)
    if args.junit:
        printed = last_lines(code[stopped[0] - 1][1].outputs) if stopped else ""
        report = junit.report(args.notebook.stem, rows, [title for title, _ in code], printed)
        args.junit.parent.mkdir(parents=True, exist_ok=True)
        replace(args.junit, report.decode())
    if stopped:
        line = junit.annotation(args.notebook, stopped[0], for_terminal(stopped[3]))
        if line:
            print(line, flush=True)


def ask_for_cuda(notebook):
    """Writes the feature into the cell that names the crate, as a person on a GPU machine does."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = re.sub(
                r'^(:dep emoji_lab = \{ path = "[^"]*") \}', r'\1, features = ["cuda"] }', cell.source, flags=re.MULTILINE
            )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--inplace", action="store_true")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--timings", action="store_true")
    parser.add_argument("--junit", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    notebook = nbformat.read(args.notebook, as_version=4)
    executed, page = args.out / args.notebook.name, args.out / f"{args.notebook.stem}.html"
    try:
        check_places(notebook, args.notebook, executed, page)
    except Misplaced as reason:
        print(f"run: {reason}", file=sys.stderr)
        return 2
    clean(notebook)
    try:
        for line in parameters.inject(notebook):
            print(f"parameter: {for_terminal(line)}")
    except parameters.WrongParameter as reason:
        print(f"run: {reason}", file=sys.stderr)
        return 2
    if args.cuda:
        ask_for_cuda(notebook)
    home = home_directory()
    logs = own_home(home) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"kernel-{os.getpid()}.log"
    code = code_cells(notebook)
    rows, total = [], len(code)
    try:
        kernels = home / "venv" / "share" / "jupyter" / "kernels"
        started = time.monotonic()
        session = start_session(kernels, args.notebook.resolve().parent, log)
        try:
            start = time.monotonic() - started
            print(f"kernel: evcxr {session.version}, started in {start:.1f} s", flush=True)
            if args.timings:
                session.stamp = log.with_suffix(".stamp")
            notebook.metadata.kernelspec = {"name": "rust", "display_name": "Rust", "language": "rust"}
            notebook.metadata.language_info = language_info(session.language_info)
            signal.signal(signal.SIGINT, lambda *_: setattr(session, "interrupts", session.interrupts + 1))
            rows = run_cells(code, session, args.timeout)
        finally:
            session.close()
    except KernelFault as fault:
        print(f"run: {fault}", file=sys.stderr)
        return 2
    finally:
        save(marked(notebook), executed)
        save_html(notebook, page)
    failed = len(rows) < total or any(row[3] for row in rows)
    summary(rows, total)
    tell_integration(args, code, rows)
    if args.timings:
        print("\n" + timings.table(start, rows))
    if not failed:
        log.unlink(missing_ok=True)
        if args.inplace:
            notebook.cells = parameters.without_injected(notebook.cells)
            save(notebook, args.notebook)
    print(f"\n{executed}\n{page}")
    if args.inplace:
        print(f"{args.notebook}{' is unchanged: not every cell ran' if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
