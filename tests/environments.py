"""Where a benchmark ran, as `benchmarks.environment` describes it."""

from __future__ import annotations

ENVIRONMENT = {
    "processor": "one",
    "cpus": 2,
    "threads": 2,
    "memory": "1 GiB",
    "platform": "here",
    "python": "3",
    "packages": {"torch": "2", "transformers": None},
    "commit": "abc",
    "date": "2020-01-01T00:00:00",
    "command": "python -m benchmarks",
}
