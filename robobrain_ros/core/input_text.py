# SPDX-License-Identifier: Apache-2.0
"""Text from outside: validation of requests' texts, sanitized error messages, names of objects."""

from __future__ import annotations

import re

from robobrain_ros.core.errors import BrainError, ErrorCode

MAX_TEXT = 4000
"""Characters in a request's text; more is a mistake, and costs memory in the model."""

_MAX_MESSAGE = 1000  # characters of an error message: it may quote a name of a megabyte
_MAX_NAME = 64
_LEADING = re.compile(
    r"^(?:(?:please )?(?:point (?:at|to|out)|show(?: me)?|find|locate|identify|detect|grasp|"
    r"pick up|where (?:is|are)|(?:the )?box(?:es)? of)\s+)?(?:(?:the|a|an|all|any)\s+)*",
    re.IGNORECASE,
)
# All of C0 and C1 but tab and line feed, and half characters, which no tokenizer takes.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def checked_text(text: str) -> str:
    """Return a request's text as it is asked: stripped, and with a space for each control
    character.

    Raises BrainError BAD_REQUEST for one that has nothing to read in it, and for more than MAX_TEXT
    characters.
    """
    if len(text) > MAX_TEXT:
        raise BrainError(
            ErrorCode.BAD_REQUEST,
            f"The text has {len(text)} characters, at most {MAX_TEXT} are taken.",
        )
    text = _CONTROL.sub(" ", text).strip()
    # Zero-width marks and the like can't be seen, nor meant.
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise BrainError(ErrorCode.BAD_REQUEST, "The text is empty: say what to look for.")
    return text


def sanitize_error(message: str) -> str:
    """Return an error message for responses and logs: a space for what can't be printed, and the
    middle left out where it is long. The advice is at the end.
    """
    if len(message) > _MAX_MESSAGE:
        half = _MAX_MESSAGE // 2
        message = f"{message[:half]}…{message[-half:]}"
    return "".join(c if c.isprintable() else " " for c in message)


def object_name(text: str) -> str:
    """Return the name of the thing that a request is about, for class ids: its text without a
    leading verb ("point to", "where is") and article, on one line, at most 64 characters.
    """
    name = " ".join(text.split()).rstrip(" .?!")
    name = _LEADING.sub("", name) or name
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1].rstrip() + "…"
