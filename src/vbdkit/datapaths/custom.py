"""What a custom script in Python attached, in the hands of another program: its script takes it back."""

from vbdkit.engine.custom import Custom

__all__ = ["Custom"]
