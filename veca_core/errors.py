"""What can be wrong with a model, its weights or what is asked of it, said in one line."""


class ModelError(Exception):
    """A model, or a request to one, that cannot be used: what was found, what was expected, what to do."""
