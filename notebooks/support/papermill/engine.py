"""Runs a notebook's cells for papermill in the Rust kernel, and notices every failure.

evcxr answers "ok" to a cell that panicked or ended through `?`; kernel_session.py tells them apart. A cell that
failed gets an error output, at which papermill stops, marks the notebook and ends with 1.
"""

import os
import tempfile
from pathlib import Path

import nbformat
from papermill.engines import NBClientEngine
from papermill.log import logger

from .kernel_session import start_session


class RustEngine(NBClientEngine):
    """`papermill --engine rust`, and for Rust notebooks papermill's default."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, log_output=False, execution_timeout=None, **_):
        shown = (lambda output: logger.info(text_of(output))) if log_output else (lambda output: None)
        with tempfile.TemporaryDirectory(prefix="emoji_lab-papermill-") as folder:
            session = start_session(None, os.getcwd(), Path(folder) / "kernel.log", kernel=kernel_name)
            try:
                nb_man.nb.metadata.language_info = {**session.language_info, "name": "rust"}
                run_cells(nb_man, session, shown, execution_timeout)
            finally:
                session.close()


class Engine(NBClientEngine):
    """papermill's default engine, except for notebooks in Rust."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        rust = cls.nb_language(nb_man.nb).lower() == "rust"
        engine = RustEngine if rust else NBClientEngine
        engine.execute_managed_notebook(nb_man, kernel_name, **options)


def run_cells(nb_man, session, shown, timeout):
    """Runs the code cells in order, up to the first that fails."""
    count, last = 0, max((i for i, cell in enumerate(nb_man.nb.cells) if is_run(cell)), default=None)
    for index, cell in enumerate(nb_man.nb.cells):
        failure = None
        nb_man.cell_start(cell, index)
        if is_run(cell):
            count += 1
            result = session.run(cell.source, shown, None, timeout)
            if index == last and not result.kernel_lost:
                session.wait_for_late_output(result, shown)
                session.check_threads(result)
            allowed = "raises-exception" in cell.metadata.get("tags", []) and not result.kernel_lost
            failure = None if allowed else result.failure
            cell.execution_count, cell.outputs = count, result.outputs
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
            if failure:
                # papermill looks for an error output. What the compiler says is one; stderr is none.
                if not any(output.output_type == "error" for output in cell.outputs):
                    cell.outputs.append(nbformat.v4.new_output("error", ename="cell failed", evalue=failure, traceback=[failure]))
                nb_man.cell_exception(cell, index)
        nb_man.cell_complete(cell, index)
        if failure:
            break


def is_run(cell):
    return cell.cell_type == "code" and bool(cell.source.strip())


def text_of(output):
    if output.output_type == "stream":
        return output.text
    return output.get("data", {}).get("text/plain", "")
