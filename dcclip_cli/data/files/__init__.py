"""Reading files that others made, whole or broken: bounded, never unpickled, never led out of their folder."""
