"""Bulk scoring: ``glow-score ARTIFACT_OR_URL IN OUT``, of files of any size, resumable to the byte.

``targets`` answers for batches of rows, in process or over HTTP, ``ray_target`` on a cluster; ``results`` is what
comes of each batch; ``spool`` keeps that until all is scored; ``sinks`` writes the file in the end; ``run`` is all of
it, and ``command`` the arguments.
"""
