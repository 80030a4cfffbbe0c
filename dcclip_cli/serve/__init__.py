"""Serving a model over HTTP: batches across clients, limits, and the protocols of OpenAI, immich
and MT Photos.
"""
