"""What an input may take."""

MAX_BYTES = 4096  # of an input; what may grow out of so few bytes is bounded:
MAX_SECONDS = 2.0  # of the processor
MAX_GROWTH_MB = 256  # of the process's peak
MAX_RSS_MB = 1024  # of the process
HANG_S = 60
