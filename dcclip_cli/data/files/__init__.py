"""Readers of third-party files, whole or broken: bounded in size, never unpickling, never leaving their folder."""
