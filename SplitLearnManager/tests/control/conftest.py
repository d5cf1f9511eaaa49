"""The stock client comes with the pins of the tests, and not with the oldest versions."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("tritonclient") else ["test_stock_client.py"]
