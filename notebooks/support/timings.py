"""What a run's cells took, beside what they may take: `notebooks/run --timings`."""

import os
import statistics
import textwrap

# Seconds on two cores, warm; docs/start-up.md says how they were measured.
FIRST_CELL, ORDINARY_CELL, WHOLE = 6.0, 0.7, 60.0


def beside(what, seconds, bar):
    verdict = "" if bar is None else f"at most {bar:4.0f}  {'ok' if seconds <= bar else 'OVER'}"
    return f"  {what:34} {seconds:7.1f} s  {verdict}".rstrip()


def table(start, rows):
    """The text of the tables. `rows` as run_cells returns them; `start` is the kernel's own start in seconds.

    Compiling counts from sending a cell to its first line; evcxr's work on types and cargo's are in it.
    """
    lines = ["  cell  compiling  running  (seconds)"]
    for number, title, seconds, _, compiling in rows:
        shown = f"{compiling:9.2f}  {seconds - compiling:7.2f}" if compiling is not None else f"{'-':>9}  {seconds:7.2f}"
        lines.append(f"  {number:4}  {shown}  {textwrap.shorten(title, 70, placeholder='…')}")
    lines.append("")
    lines.append(beside("kernel's start", start, None))
    if rows:
        lines.append(beside("first cell", rows[0][2], FIRST_CELL))
    others = [compiling for _, _, _, _, compiling in rows[1:] if compiling is not None]
    if others:
        lines.append(beside("other cells, compiling, median", statistics.median(others), ORDINARY_CELL))
        lines.append(beside("other cells, compiling, slowest", max(others), None))
    lines.append(beside("whole notebook", start + sum(row[2] for row in rows), WHOLE))
    load = os.getloadavg()[0]
    lines.append(f"  {os.cpu_count()} cores; load at the end {load:.1f} (this run alone: about 1 to {os.cpu_count()})")
    return "\n".join(lines)
