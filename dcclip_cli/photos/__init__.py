"""Photo libraries: an index of folders, search, duplicates, tags in XMP, and a folder that is
watched.
"""
