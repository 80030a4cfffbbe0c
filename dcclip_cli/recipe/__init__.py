"""From a YAML file to a checked, typed recipe."""
