"""Bulk scoring: ``glow-score ARTIFACT_OR_URL IN OUT``, of files of any size, resumable to the byte.

``targets`` answers for batches of rows, in process or over HTTP; ``spool`` keeps what is scored until all is;
``sinks`` writes the file in the end; ``command`` is the run and its arguments.
"""
