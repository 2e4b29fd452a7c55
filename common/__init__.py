"""What both halves stand on and neither owns: how commands speak and end, and what files and folders of rows are.

Nothing here knows of models, HTTP or the engine.
"""
