"""How the checks in a browser are run: one after another, a line each, whatever becomes of the one before."""

import sys
import traceback


def run_checks(title, checks, names, picture=None):
    """Calls the methods of `checks` that are called `names`; returns how many of them failed.

    A method's docstring says what is checked, what it returns is shown behind it. `picture` is called with the
    name of one that fails, to take a picture of what there was.
    """
    failed = 0
    for name in names:
        check = getattr(checks, name)
        try:
            print(f"{title}: {check.__doc__}: ok ({check()})", flush=True)
        except Exception as error:
            failed += 1
            if picture:
                picture(name)
            print(f"{title}: {check.__doc__}: FAILED: {type(error).__name__}: {error}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc(limit=-3, file=sys.stdout)
    print(f"{title}: {len(names) - failed} checks passed, {failed} failed")
    return failed
