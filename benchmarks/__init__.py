"""The costs of phptrace: interleaved pairs, medians and spread. Budgets are goals, not tests."""
