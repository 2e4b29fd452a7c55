"""What is promised, broken on purpose: faults, fuzzing, soaks and mutants, and the figures that they left.

Each part is a command that keeps its figures in ``reliability/figures``; ``reliability.report`` writes
docs/reliability.md from them.
"""
