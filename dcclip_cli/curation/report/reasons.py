"""What does each reason mean to a person: which step drops for it, what it says, and which setting moves it?"""

from __future__ import annotations

from dataclasses import dataclass

# In the order of the steps; a reason belongs to the first step whose exact reasons or beginnings it matches.
_STEPS = {
    "Reading": ("captions-", "row-", "record-", "table-", "tar-", "image-missing", "image-outside", "image-base64"),
    "Download": ("url-",),
    "Decontamination": ("evaluation-",),
    "Duplicates": (
        "image-duplicate",
        "image-merged",
        "image-near-duplicate",
        "caption-duplicate",
        "caption-near-duplicate",
    ),
    "Scores": ("agreement-", "classifier-", "prompts-"),
    "DecodedImage": ("image-",),
    "Captions": ("caption-",),
    "Empty pairs": ("no-caption",),
}
STEPS = (
    "Reading",
    "Download",
    "DecodedImage",
    "Captions",
    "Scores",
    "Empty pairs",
    "Decontamination",
    "Duplicates",
    "Other",
)

# Reason -> what it says; what to change in the recipe's collect section if the rule is wrong ("" where nothing does).
_MEANINGS = {
    "image-missing": ("The image file named beside the captions isn't there.", ""),
    "image-outside": ("The image's path or link leads out of the source's folder.", "sources: {allow_outside}"),
    "captions-missing": ("The caption file isn't there.", ""),
    "captions-bytes": ("The caption file is far too long.", ""),
    "captions-unreadable": ("The caption file isn't UTF-8, JSON or text.", ""),
    "row-malformed": ("The table's row has too many or too few cells, or isn't UTF-8.", ""),
    "table-unreadable": ("The table can't be read from here on.", ""),
    "tar-unreadable": ("The tar file can't be read from here on.", ""),
    "tar-cut": ("The tar file ends too soon.", ""),
    "image-base64": ("The image isn't proper base64.", ""),
    "record-unreadable": ("The pair's record isn't JSON, or holds something else than captions.", ""),
    "record-bytes": ("Captions and metadata together are too long for a record.", ""),
    "url-scheme": ("The address isn't http or https.", ""),
    "url-malformed": ("The address can't be understood.", ""),
    "url-private": ("The address leads into a private network.", "fetch: {allow_hosts}"),
    "url-redirects": ("The server sent us on too many times.", "fetch: {max_redirects}"),
    "url-bytes": ("The server sends more than is allowed.", "fetch: {max_bytes}"),
    "url-timeout": ("The download took too long.", "fetch: {timeout_s}"),
    "url-broken": ("The connection broke.", "fetch: {retries}"),
    "url-encoding": ("The server sent something compressed that can't be read.", ""),
    "url-opt-out": ("The site asks that its images are not used for training.", "fetch: {opt_outs}"),
    "url-robots": ("The site's robots.txt asks programs to keep out.", "fetch: {robots}"),
    "url-tls": ("The server's certificate is not valid.", ""),
    "url-unreachable": ("No connection to the server.", "fetch: {retries}"),
    "url-empty": ("The server sent nothing.", ""),
    "image-bytes": ("The file has too many bytes, or too few.", "filters: {kind: image, min_bytes, max_bytes}"),
    "image-format": ("The file isn't a JPEG, PNG or WebP that is allowed.", "filters: {kind: image, formats}"),
    "image-unreadable": ("The image can't be decoded, or part of it is missing.", ""),
    "image-bomb": ("The file claims more pixels than any picture has.", ""),
    "image-small": ("The shorter side has too few pixels.", "filters: {kind: image, min_side}"),
    "image-large": ("The longer side has too many pixels.", "filters: {kind: image, max_side}"),
    "image-aspect": ("The image is too long and narrow.", "filters: {kind: image, max_aspect}"),
    "image-animated": ("The image moves.", "filters: {kind: image, animated}"),
    "image-blank": ("The image is almost a single colour.", "filters: {kind: blank, contrast, min_share}"),
    "caption-control": ("Holds control characters or broken text.", ""),
    "caption-short": ("Too few characters (Chinese) or words (English).", "filters: {kind: length, zh, en}"),
    "caption-long": (
        "Too many characters (Chinese) or words (English).",
        "filters: {kind: length, zh, en, longest_word}",
    ),
    "caption-language": ("Not in the language that it is said to be in.", "filters: {kind: language, detector}"),
    "caption-script": ("Too few letters of its language's own script.", "filters: {kind: script, min_share}"),
    "caption-mixed": ("Chinese characters and Latin letters in one caption.", "filters: {kind: script, mixed}"),
    "caption-url": ("Holds an address of the web.", "filters: {kind: filename}"),
    "caption-filename": ("Reads like the name of a file.", "filters: {kind: filename}"),
    "caption-camera": ("A number that a camera or a program gave.", "filters: {kind: filename}"),
    "caption-boilerplate": ("A phrase of the page around the image, not of the image.", "filters: {kind: boilerplate}"),
    "caption-generated": ("Written by a program that says so.", "filters: {kind: boilerplate}"),
    "caption-placeholder": ("Says only that there is a picture.", "filters: {kind: boilerplate}"),
    "caption-emoji": ("Emoji and no word.", "filters: {kind: wordless}"),
    "caption-wordless": ("Digits and signs, no word.", "filters: {kind: wordless, numbers}"),
    "caption-html": ("Holds HTML.", "filters: {kind: markup}"),
    "caption-garbled": ("Text that was decoded wrongly, beyond mending.", "filters: {kind: garbled}"),
    "caption-repetition": (
        "The same character or word again and again.",
        "filters: {kind: repetition, times, max_share}",
    ),
    "caption-many": (
        "The pair that it would move to has enough captions.",
        "duplicates: {kind: same-image, most_captions:}",
    ),
    "caption-repeated": ("The pair has the same caption already.", ""),
    "no-caption": ("No caption is left, or none in a language that pairs need.", "needs"),
    "evaluation-image": (
        "Shows what an image of a named evaluation set shows.",
        "decontaminate: {paths, images, bits}",
    ),
    "evaluation-caption": ("A named evaluation set has this caption.", "decontaminate: {paths, captions}"),
    "image-duplicate": ("The same picture as that of an earlier pair.", "duplicates: {kind: same-image}"),
    "image-merged": (
        "The same picture as that of an earlier pair, which got the captions.",
        "duplicates: {kind: same-image, captions, most_captions}",
    ),
    "image-near-duplicate": ("Nearly the same picture as an earlier pair's.", "duplicates: {kind: near-image, bits}"),
    "caption-duplicate": (
        "As many earlier pairs as may have this caption.",
        "duplicates: {kind: same-caption, at_most}",
    ),
    "caption-near-duplicate": (
        "As many earlier pairs as may have nearly the same.",
        "duplicates: {kind: same-caption, at_most, similarity, min_letters}",
    ),
}


@dataclass(frozen=True)
class Meaning:
    """A reason explained: `says` and `setting` are empty where nothing is known."""

    step: str
    says: str
    setting: str


# The same for reasons that carry a number, a label or a scorer's name: how they begin and end.
_PATTERNS = {
    ("url-status-", ""): ("The server answered with status {}.", ""),
    ("agreement-", "low"): (
        "The model finds that the caption doesn't fit the image.",
        "scores: {kind: agreement, keep, threshold}",
    ),
    ("prompts-", "reject"): (
        "The image looks like one of the prompts to be rejected.",
        "scores: {kind: prompts, reject, against, threshold}",
    ),
    ("classifier-", ""): ("The classifier says: {}.", "scores: {kind: classifier, reject, threshold}"),
}


def meaning_of(reason: str) -> Meaning:
    """What a reason means; also for one that this file doesn't know, by its beginning."""
    step = next((step for step, marks in _STEPS.items() if any(_matches(reason, mark) for mark in marks)), "Other")
    if reason in _MEANINGS:
        return Meaning(step, *_MEANINGS[reason])
    for (begin, end), (says, setting) in _PATTERNS.items():
        if reason.startswith(begin) and reason.endswith(end):
            return Meaning(step, says.format(reason.removeprefix(begin)), setting)
    return Meaning(step, "", "")


def _matches(reason: str, mark: str) -> bool:
    return reason.startswith(mark) if mark.endswith("-") else reason == mark
