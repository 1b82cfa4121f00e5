"""A tiny store of each version that was released, which every later one reads: `python -m tests.released` adds one."""
