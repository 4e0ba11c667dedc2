"""What may be shown on a terminal."""

import unicodedata


def harmless(text: str) -> str:
    """Text without what a terminal would take for a command, such as ESC."""
    return "".join(letter if letter in "\n\t" or unicodedata.category(letter) != "Cc" else "\ufffd" for letter in text)
