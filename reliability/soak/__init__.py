"""Hours of load, and what they do to memory, files, threads and latencies: ``python -m reliability.soak``."""
