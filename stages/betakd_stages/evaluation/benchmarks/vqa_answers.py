"""Answers as the VQA challenges compare them: lower case, without punctuation and articles, numbers as digits.

Source: EvalAIAnswerProcessor of Pythia, as TextVQA's evaluation uses it; its oddities are part of the rule.
"""

import re
from functools import lru_cache

PUNCTUATION = r';/[]"{}()=+\_-><@`,?!'
ARTICLES = ("a", "an", "the")
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
FULL_STOP = re.compile(r"\.(?!\d)")
MAX_FULL_STOPS = 32  # the official call hands re.UNICODE, which is 32, over as the number of replacements
WRITTEN_OUT = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
"""The contractions that are mended where one of their apostrophes is missing."""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in WRITTEN_OUT.split()
    for place in range(len(word))
    if word[place] == "'"
} | {"somebody'd": "somebodyd"}


@lru_cache(maxsize=100_000)
def normalised(answer: str) -> str:
    """The answer as it is compared."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    without = text
    for mark in PUNCTUATION:  # at a word's edge it goes, inside a word it parts it: whichever the first answer shows
        at_edge = mark + " " in text or " " + mark in text
        without = without.replace(mark, "" if at_edge else " ")
    without = FULL_STOP.sub("", without, count=MAX_FULL_STOPS)
    words = [NUMBERS.get(word, word) for word in without.split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
