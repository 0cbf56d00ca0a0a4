"""What a check says when it falls short."""


class Failed(Exception):
    """A check that fell short, with the reason."""


def need(condition, reason):
    if not condition:
        raise Failed(reason)
