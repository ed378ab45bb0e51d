"""What phptrace costs: interleaved pairs, medians and spread. Budgets are goals, not tests."""
