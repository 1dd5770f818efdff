"""Make the helper modules beside the tests importable, and keep calibrations out of the user's own cache."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

# pytest's importlib mode doesn't add the tests' folder.
sys.path.insert(0, str(Path(__file__).parent))

# What an earlier run measured must not stand in for what this one would.
_CACHE = tempfile.mkdtemp(prefix="lmmprune-cache-")
os.environ["LMMPRUNE_CACHE"] = _CACHE
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
