"""Fuzzing of what reads bytes that others wrote: codec, client, embedded store, and the protocol's small texts.

``targets`` says what must hold for any bytes; ``seeds`` makes the inputs to start from; ``python -m tests.fuzz`` runs
the targets under atheris (`make check-fuzz`), ``test_targets.py`` without it.
"""
