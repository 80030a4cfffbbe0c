"""Serving a model over HTTP: batches across clients, limits, and the protocols of OpenAI and immich."""
