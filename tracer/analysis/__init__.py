"""Facts in, findings out: pure functions and accumulators without I/O."""
