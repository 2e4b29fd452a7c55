"""What both halves stand on and neither owns: how commands speak and end, their extras, how CSV files are written.

Nothing here knows of models, HTTP or the engine.
"""
