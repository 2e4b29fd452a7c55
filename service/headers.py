"""Headers that are named in more than one place, beside those of HTTP."""

TIMEOUT = "x-request-timeout-ms"  # of a request: milliseconds after which no answer is of use any more
JSON_SIZE = "inference-header-content-length"  # of the Open Inference Protocol: bytes of JSON before binary tensors
LEVELS = {  # which rows are anomalies
    "alpha": "Share of false alarms that is accepted",
    "level": "Largest p-value of an anomaly under guarantee conditional",
    "fdr": "Level of Benjamini-Hochberg",
}
TOLD = {  # members of JSON that binary answers have as headers, x-glow-NAME
    "model": "Name of the model",
    "version": "Version of the model",
    **LEVELS,
    "seed": "Seed of the samples",
}


def told(name: str) -> str:
    """The header of such a member."""
    return f"x-glow-{name}"
