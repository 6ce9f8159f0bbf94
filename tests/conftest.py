"""Settings of all tests: how hypothesis draws."""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline: machines are shared and noisy, and how long an example takes proves nothing. In CI the same examples each time: a
# change is judged by what it changed. By hand they differ from run to run.
settings.register_profile("garrison", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("garrison")
