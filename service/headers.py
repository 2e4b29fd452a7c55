"""Headers that the service and its client both name, beside those of HTTP."""

TIMEOUT = "x-request-timeout-ms"  # of a request: milliseconds after which no answer is of use any more
JSON_SIZE = "inference-header-content-length"  # of the Open Inference Protocol: bytes of JSON before binary tensors
