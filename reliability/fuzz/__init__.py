"""Fuzzing: for every reader of bytes from outside a target, which says what it promises of any bytes.

``target`` is what a target is, and ``table`` lists all, each in the file of its kind; ``campaign`` runs one under
atheris, which learns from coverage what to try next, and ``python -m reliability.fuzz`` runs campaigns and keeps their
figures and corpora. What is in ``corpus`` is read again by tests/test_fuzz.py, which needs no atheris.
"""
