"""What the client makes of interrupts, of settings without bounds, and of answers that are none of a Glow service."""

import subprocess
import sys

INTERRUPTED = """
import threading
import httpx
from service.client import GlowClient

def handler(request):
    if not request.content.endswith(bytes(8)):
        raise KeyboardInterrupt
    threading.Event().wait()

http = httpx.Client(base_url="http://glow", transport=httpx.MockTransport(handler))
GlowClient(http, model="m@v", max_rows=1).log_likelihood([[0.0], [0.0], [1.0]])
"""


def test_a_program_ends_without_the_requests_of_a_call_that_is_over() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("KeyboardInterrupt\n"), done.stderr
