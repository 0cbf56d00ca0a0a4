"""Rust for papermill: parameters with their types, and cells that are judged as `notebooks/run` judges them.

papermill imports this when it starts (the entry point in pyproject.toml).
"""

from papermill.engines import papermill_engines
from papermill.translators import papermill_translators

from .engine import Engine, RustEngine
from .translator import RustTranslator

for language in ("rust", "Rust"):
    papermill_translators.register(language, RustTranslator)
# papermill's own engine takes a panic in a Rust cell for success, so Rust notebooks get ours without asking.
papermill_engines.register(None, Engine)
