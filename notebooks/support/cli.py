"""The command line of `notebooks/run`: set-up, settings for the notebook, then runner.py."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path

import environment
import junit
import launch_kernel
import parameters

LESSON = Path(__file__).resolve().parent.parent / "finetune_gemma3_emoji.ipynb"

DESCRIPTION = """\
Executes a notebook in the Rust kernel and leaves the executed .ipynb and an .html beside it.
Installs first what is missing: Jupyter's packages in a virtual environment, evcxr_jupyter, the
kernelspec and rust-src (see kernel-setup.md). Ends with 0 if every cell ran to its end, with 1 if
one failed (compile error, error through `?`, panic, lost process, time-out): the cells after it
are not run, and the notebook is saved as far as it came. Ends with 2 if nothing ran: a wrong option,
results that would replace a file that is none, something that could not be installed, a kernel that
does not start; with 143 if it was told to end (SIGTERM)."""

EPILOG = """\
Without --model and --data the lesson uses the tiny model and the rows that are in the repository.
The options that name an EMOJI_LAB_… variable set a parameter of the notebook, and so does the variable
itself: after the cell tagged `parameters` a cell is put that has the other values (as papermill does).
EMOJI_LAB_HOME is where installed things go (default ~/.cache/emoji_lab)."""


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="notebooks/run",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("notebook", nargs="?", type=Path, default=LESSON, help="default: the lesson")
    parser.add_argument("--model", metavar="MODEL", help="a folder, a .gguf file or a Hub id: EMOJI_LAB_MODEL")
    parser.add_argument(
        "--data", metavar="DATA", help="a CSV or JSONL file (EMOJI_LAB_CSV) or a Hub id (EMOJI_LAB_DATASET)"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="use the first N rows only: EMOJI_LAB_ROWS")
    parser.add_argument("--epochs", type=float, metavar="N", help="train for N epochs: EMOJI_LAB_EPOCHS")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other parameter, as seed=7"
    )
    parser.add_argument(
        "-p", action="append", default=[], nargs=2, metavar=("NAME", "VALUE"), help="the same as papermill writes it: -p seed 7"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the results go (default: out/ beside the notebook); only results of earlier runs are replaced there"
    )
    parser.add_argument("--timeout", type=float, default=3600, metavar="S", help="seconds a cell may take; 0: any")
    parser.add_argument("--inplace", action="store_true", help="also write the executed notebook over NOTEBOOK")
    parser.add_argument(
        "--cuda", action="store_true", help='build the crate with `features = ["cuda"]`, whatever the first cell says'
    )
    parser.add_argument(
        "--junit", type=Path, metavar="FILE", help="write what each cell came to as JUnit XML, for continuous integration; such a file of an earlier run is replaced"
    )
    parser.add_argument("--timings", action="store_true", help="also print what compiling and running took, cell by cell")
    parser.add_argument("--cold", action="store_true", help="in a new build directory, as at the first start; with --timings")
    group = parser.add_argument_group("instead of running a notebook")
    group.add_argument("--setup", action="store_true", help="install what is missing, and stop")
    group.add_argument("--lab", action="store_true", help="install JupyterLab too, and open NOTEBOOK in it (with --setup: only install)")
    group.add_argument("--install-kernel", action="store_true", help="make the kernel known to your own Jupyter")
    group.add_argument("--uninstall-kernel", action="store_true", help="undo --install-kernel")
    return parser, parser.parse_args(arguments)


def path_or_id(value):
    """An existing path as an absolute one (the kernel runs elsewhere); anything else as it is."""
    path = Path(value).expanduser()
    return (str(path.resolve()), True) if path.exists() else (value, False)


def looks_like_a_path(value):
    return value.startswith((".", "/", "~")) or value.endswith((".csv", ".jsonl", ".gguf")) or value.count("/") > 1


def notebook_settings(parser, args):
    """The EMOJI_LAB_… variables that the options stand for."""
    settings = {}
    for option, value in (("--model", args.model), ("--data", args.data)):
        if value and looks_like_a_path(value) and not path_or_id(value)[1]:
            parser.error(f"{option} {value}: there is no such file or folder")
    if args.model:
        settings["EMOJI_LAB_MODEL"] = path_or_id(args.model)[0]
    if args.data:
        value, is_path = path_or_id(args.data)
        settings["EMOJI_LAB_CSV" if is_path else "EMOJI_LAB_DATASET"] = value
    if args.rows is not None:
        settings["EMOJI_LAB_ROWS"] = str(args.rows)
    if args.epochs is not None:
        settings["EMOJI_LAB_EPOCHS"] = str(args.epochs)
    for pair in args.set + ["=".join(pair) for pair in args.p]:
        name, separator, value = pair.partition("=")
        if not separator or not name.replace("_", "").isalnum():
            parser.error(f"--set {pair}: expected NAME=VALUE, as in --set seed=7")
        settings["EMOJI_LAB_" + name.upper().removeprefix("EMOJI_LAB_")] = value
    return settings


def check_names(parser, notebook, settings):
    """Refuses a parameter that the notebook does not have."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))
        for cell in cells["cells"]:
            cell["source"] = "".join(cell["source"])
        unknown = parameters.unknown(cells, settings)
    except (ValueError, KeyError, TypeError):
        return  # No notebook: the runner says so.
    if unknown:
        names = parameters.declared(cells["cells"][parameters.cell_of(cells)]["source"])
        parser.error(f"{notebook.name} has no parameter {parameters.parameter(unknown[0])}; it has {', '.join(names)}")


def output_folder(notebook, out):
    """Where the notebook's own results go: relative if it can be, to keep this machine's paths out of it."""
    relative = os.path.relpath(out, notebook.parent)
    return str(out) if relative.startswith("..") else relative


def start_lab(python, notebook):
    """Becomes JupyterLab with `notebook` open; its root is this repository, or the notebook's folder."""
    repository = LESSON.parent.parent
    root = repository if notebook.is_relative_to(repository) else notebook.parent
    # In the address, so that it is also in the one that is printed.
    page = "/lab/tree/" + urllib.parse.quote(notebook.relative_to(root).as_posix())
    command = [str(python.parent / "jupyter-lab"), f"--ServerApp.root_dir={root}", f"--LabApp.default_url={page}"]
    # Jupyter refuses root, who is nevertheless the only user of many containers.
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    if not (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        command.append("--no-browser")
        environment.say("no display here: open the address that JupyterLab prints in a browser")
    sys.stdout.flush()
    os.execv(command[0], command)


def main():
    parser, args = parse(sys.argv[1:])
    home = environment.home_directory()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.uninstall_kernel:
            environment.uninstall_for_user()
            return 0
        settings = notebook_settings(parser, args)
        notebook = args.notebook.expanduser().resolve()
        if args.cuda and args.inplace:
            parser.error("--cuda is for this run only: with --inplace, write the feature into the first cell")
        acts = args.setup or args.lab or args.install_kernel
        if args.junit and not junit.is_ours_to_replace(args.junit.expanduser()):
            parser.error(f"--junit {args.junit}: it is there and no JUnit file: name another")
        if not (args.setup or args.install_kernel) and not notebook.is_file():
            parser.error(f"{args.notebook}: there is no such notebook")
        if not acts:
            check_names(parser, notebook, settings)
        elif settings:
            parser.error("--model, --data, --rows, --epochs and --set are for a run: in Jupyter, write them into the cell `parameters`")
        # A run with --cold measures how the first cell compiles the crate.
        shown = None if args.install_kernel or args.cold else notebook
        python, evcxr = environment.ensure_all(home, lab=args.lab, notebook=shown, cuda=args.cuda)
        if args.install_kernel:
            environment.install_for_user(home, python, evcxr)
        if args.lab:
            if not args.setup:
                start_lab(python, notebook)
        if acts:
            return 0
    except environment.SetupError as error:
        print(f"run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run: interrupted; what is compiled is kept, and the next run goes on from there", file=sys.stderr)
        return 130
    out = (args.out or notebook.parent / "out").resolve()
    os.environ.update(settings)
    os.environ.setdefault("EMOJI_LAB_OUTPUT", output_folder(notebook, out))
    runner = Path(__file__).resolve().parent / "runner.py"
    command = [str(python), str(runner), str(notebook), "--out", str(out), "--timeout", str(args.timeout)]
    sys.stdout.flush()
    command += ["--inplace"] * args.inplace + ["--cuda"] * args.cuda + ["--timings"] * args.timings
    if args.junit:
        command += ["--junit", str(args.junit.expanduser().resolve())]
    if not args.cold:
        os.execv(python, command)
    with tempfile.TemporaryDirectory(prefix="emoji_lab-cold-", dir=launch_kernel.own_home(home)) as folder:
        launch_kernel.write_cargo_config(Path(folder))
        return subprocess.call(command, env={**os.environ, "EVCXR_TMPDIR": f"{folder}/1"})


if __name__ == "__main__":
    sys.exit(main())
