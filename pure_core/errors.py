"""The one exception that users meet."""


class PureError(ValueError):
    """What was expected, what came and what to do, in one sentence a user can act on."""
