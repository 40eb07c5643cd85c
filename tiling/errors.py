"""What can be wrong with an image, said in one line that a user can act on."""


class ImageError(Exception):
    """An image, or a part of it, that cannot be used: what was found, what was expected, what to do."""

    def __init__(self, message: str) -> None:
        # A file may be named over two lines; what is said of it is one.
        super().__init__("\\n".join(message.splitlines()))
