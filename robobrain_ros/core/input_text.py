# SPDX-License-Identifier: Apache-2.0
"""Words from outside before anything is done with them, and before they are said again."""

from __future__ import annotations

import re

from robobrain_ros.core.errors import BrainError, ErrorCode

MAX_TEXT = 4000
"""Characters in a request's text; more is a mistake, and costs memory in the model."""

_MAX_SENTENCE = 1000  # characters of what an error says: it may quote a name of a megabyte
# All of C0 and C1 but tab and line feed, and half characters, which no tokenizer takes.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def checked_text(text: str) -> str:
    """Return a request's text as it is asked: without white space around it, and with a space for
    each control character in it.

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


def sentence(words: str) -> str:
    """Return what an error says as responses and logs can bear it: a space for what can't be
    printed, and the middle left out where it is long. The advice is at the end.
    """
    if len(words) > _MAX_SENTENCE:
        half = _MAX_SENTENCE // 2
        words = f"{words[:half]}…{words[-half:]}"
    return "".join(c if c.isprintable() else " " for c in words)
