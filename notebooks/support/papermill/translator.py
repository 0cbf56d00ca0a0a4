"""Parameters as papermill has them, in Rust: `let name: type = value;`, of the type that the notebook declares."""

from papermill.exceptions import PapermillException
from papermill.models import Parameter
from papermill.translators import Translator

from . import parameters


class RustTranslator(Translator):
    """papermill shows it the notebook's own parameters (`inspect`), and then asks for those of a run (`codify`)."""

    declared = {}  # Of the notebook that was inspected last, until its values are written.

    @classmethod
    def comment(cls, text):
        return f"// {text}"

    @classmethod
    def inspect(cls, parameters_cell):
        cls.declared = parameters.declared(parameters_cell["source"])
        return [Parameter(name, kind or "None", default, "") for name, (kind, default) in cls.declared.items()]

    @classmethod
    def codify(cls, values, comment="Parameters"):
        declared, cls.declared = cls.declared, {}
        lines = [cls.comment(comment)]
        for name, value in values.items():
            kind, default = declared.get(name, ("", None))
            lines.append(f"let {name}{': ' + kind if kind else ''} = {cls.literal(name, kind, default, value)};")
        return "\n".join(lines) + "\n"

    @classmethod
    def literal(cls, name, kind, default, value):
        if value is None or isinstance(value, (dict, list)):
            raise PapermillException(f"{name}={value}: a parameter of a Rust notebook is a number, a text, true or false")
        if default is None:  # The notebook has no such parameter; papermill has said so.
            default = '""' if isinstance(value, str) else "true" if isinstance(value, bool) else "0.0"
            if type(value) is int:
                return str(value)
        try:
            return parameters.literal(name, kind, default, str(value))
        except parameters.WrongParameter as reason:
            raise PapermillException(f"{name}={value}: {reason}") from None
