"""Turns from a conversation's messages: checked to alternate, and to show one image at most, in the first question."""

from collections.abc import Sequence

from betakd_stages.data.sample import Turn
from betakd_stages.errors import DataError

PLACEHOLDER = "<image>"


def conversation_turns(
    messages: Sequence[tuple[str, str]], speakers: tuple[str, str], *, has_image: bool
) -> tuple[Turn, ...]:
    """The turns of (speaker, text) messages, without the image placeholder. `speakers`: who asks, and who answers.

    Raises DataError for speakers out of turn, and for a placeholder without an image or anywhere but once in the
    first question: the model sees the image there.
    """
    found = [speaker for speaker, _ in messages]
    if not found or found != list(speakers) * (len(found) // 2):
        raise DataError(f"its speakers are {found}, expected {speakers[0]} and {speakers[1]} in turn")
    shown = [text.count(PLACEHOLDER) for _, text in messages]
    if sum(shown[1:]) or shown[0] > 1:
        raise DataError(f"{PLACEHOLDER} stands {sum(shown)} times in it: expected at most once, in the first question")
    if shown[0] and not has_image:
        raise DataError(f"its question shows {PLACEHOLDER}, but it names no image: add the image, or drop the mark")
    texts = [text.replace(PLACEHOLDER, "").strip() for _, text in messages]
    return tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))
