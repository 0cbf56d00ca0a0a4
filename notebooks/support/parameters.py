"""A notebook's parameters: the cell tagged `parameters`, and the cell put after it that sets others.

As papermill has it: the notebook's own cell holds the defaults, and a run with other values gets a cell
tagged `injected-parameters` right after it. Values come from `EMOJI_LAB_…` variables, which the options
of `notebooks/run` stand for too.
"""

import os
import re

TAG, INJECTED = "parameters", "injected-parameters"
# Names of variables that are shorter than the parameter's; any other parameter has its own name in capitals.
SHORT = {
    "MODEL": "gemma_model",
    "DATASET": "dataset_id",
    "CSV": "custom_dataset_path",
    "ROWS": "max_rows",
    "EPOCHS": "num_train_epochs",
    "DEVICE": "device_name",
    "ADAPTER": "adapter_to_merge",
    "NAME": "model_name",
    "PUSH": "send_it",
    "OUTPUT": "output_dir",
}
PREFIX = "EMOJI_LAB_"
DECLARED = re.compile(r"^let (?:mut )?(\w+)(?:: *([\w&' ]+?))? *= *(.+?);", re.MULTILINE)
WORDS = {"yes": "true", "true": "true", "1": "true", "no": "false", "false": "false", "0": "false"}


class WrongParameter(Exception):
    """A value that a parameter cannot take, or a name that is none."""


def variable(parameter):
    """The variable that sets a parameter."""
    short = [name for name, long in SHORT.items() if long == parameter]
    return PREFIX + (short[0] if short else parameter.upper())


def parameter(name):
    """The parameter that a variable sets."""
    bare = name.removeprefix(PREFIX)
    return SHORT.get(bare, bare.lower())


def cell_of(notebook):
    """The number of the cell tagged `parameters`, or None."""
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code" and TAG in cell["metadata"].get("tags", []):
            return number
    return None


def declared(source):
    """Name, type (or "") and default of each parameter, as the cell writes them."""
    return {name: (kind or "", default) for name, kind, default in DECLARED.findall(source)}


def literal(name, kind, default, value):
    """`value` as Rust writes it, of the kind that the default is of; a WrongParameter says why it cannot be."""
    if default.startswith('"'):
        shown = (c if c.isprintable() and c not in '"\\' else f"\\u{{{ord(c):x}}}" for c in value)
        return '"' + "".join(shown) + '"'
    wrong = WrongParameter(f"{name} is {default} by default, and this is of another kind")
    if default in ("true", "false"):
        if value.lower() not in WORDS:
            raise WrongParameter(f"{name} is yes or no")
        return WORDS[value.lower()]
    if re.fullmatch(r"[iu](8|16|32|64|size)", kind):
        if not re.fullmatch(r"-?\d+" if kind[0] == "i" else r"\d+", value):
            raise wrong
        return value
    try:
        number = float(value)
    except ValueError:
        raise wrong from None
    if number != number or number in (float("inf"), float("-inf")):
        raise wrong
    return repr(number)


def settings(notebook, variables):
    """The lines of the cell that sets what `variables` ask for; empty if that is what the notebook says."""
    number = cell_of(notebook)
    if number is None:
        return []
    lines = []
    for name, (kind, default) in declared(notebook["cells"][number]["source"]).items():
        value = variables.get(variable(name), "")
        if not value:
            continue
        try:
            text = literal(name, kind, default, value)
        except WrongParameter as reason:
            raise WrongParameter(f"{variable(name)}={value}: {reason}") from None
        if text != default:
            lines.append(f"let {name}{': ' + kind if kind else ''} = {text};")
    return lines


def inject(notebook, variables=os.environ):
    """Puts the cell after the parameters; says which lines it has."""
    lines = settings(notebook, variables)
    if lines:
        import nbformat  # Not there where only names are looked at.

        cell = nbformat.v4.new_code_cell("\n".join(["// Set for this run."] + lines), metadata={"tags": [INJECTED]})
        cell["id"] = INJECTED
        notebook["cells"].insert(cell_of(notebook) + 1, cell)
    return lines


def without_injected(cells):
    """The cells that the notebook itself has."""
    return [cell for cell in cells if INJECTED not in cell["metadata"].get("tags", [])]


def unknown(notebook, names):
    """The names among these variables that nothing in the notebook reads."""
    number = cell_of(notebook)
    if number is None:
        return []
    known = declared(notebook["cells"][number]["source"])
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    return [name for name in names if parameter(name) not in known and name not in code]
