"""Verdicts on groups of requests: leak, warm-up, high-water, churn, cache, steady, or unclear and why."""
