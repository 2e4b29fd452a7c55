"""Artifacts are exchanged for what is none, at random under load, and read anew."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from reliability.chaos.conftest import Told
from reliability.load import Load, Rows, until_well
from tests.keys import write_keys
from tests.test_server import server, wait_for_workers

