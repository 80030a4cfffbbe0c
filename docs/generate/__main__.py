"""Writes the reference pages that are made from the code.

    python -m docs.generate

tests/test_docs.py fails while a page and the code differ.
"""

from docs.generate import PAGES, REFERENCE

for name, page in PAGES.items():
    (REFERENCE / name).write_text(page(), encoding="utf-8")
