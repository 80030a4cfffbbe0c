"""From a model directory to something that a device runs."""
