"""What a run tells continuous integration: a JUnit file, and an annotation of the cell that failed.

JUnit's form is the one that Jenkins, GitLab and GitHub's reporters read
(https://github.com/testmoapp/junitxml): a suite for the notebook, a case for each code cell.
"""

import os
import re
import xml.etree.ElementTree as xml

# What XML 1.0 cannot hold, not even as a number.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def allowed(text):
    """Text with what XML forbids shown as numbers."""
    return FORBIDDEN.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", text)


def is_ours_to_replace(path):
    """Whether a report can be written to `path`: nothing is there, or an earlier report."""
    if not path.exists():
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"<testsuites " in file.read(200)


def report(name, rows, titles, failed_output):
    """The JUnit file of a run, as bytes.

    `rows` are those of `run_cells` (number, title, seconds, failure, …), `titles` those of all code cells in
    their order, `failed_output` what the cell that failed printed.
    """
    failures = sum(1 for row in rows if row[3])
    counts = {"tests": str(len(titles)), "failures": str(failures), "skipped": str(len(titles) - len(rows))}
    seconds = f"{sum(row[2] for row in rows):.3f}"
    suites = xml.Element("testsuites", counts | {"errors": "0", "time": seconds})
    suite = xml.SubElement(suites, "testsuite", {"name": allowed(name), **counts, "errors": "0", "time": seconds})
    ran = {row[0]: row for row in rows}
    for number, title in enumerate(titles, 1):
        case = xml.SubElement(suite, "testcase", {"classname": allowed(name), "name": allowed(f"{number}: {title}")})
        if number not in ran:
            case.set("time", "0")
            xml.SubElement(case, "skipped", {"message": "a cell before it failed"})
            continue
        _, _, took, failure, *_ = ran[number]
        case.set("time", f"{took:.3f}")
        if failure:
            xml.SubElement(case, "failure", {"message": allowed(failure)}).text = allowed(failed_output)
    xml.indent(suites)
    return xml.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n"


def annotation(path, number, failure, environment=os.environ):
    """The line by which GitHub Actions shows a failure beside the file; None elsewhere.

    https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return None
    workspace = environment.get("GITHUB_WORKSPACE", "")
    file = os.path.relpath(path, workspace) if workspace else str(path)
    value = lambda text: text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    setting = lambda text: value(text).replace(":", "%3A").replace(",", "%2C")
    return f"::error file={setting(file)},title={setting(f'cell {number} failed')}::{value(failure)}"
