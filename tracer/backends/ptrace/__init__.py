"""Trace workers with ptrace, where BPF is not allowed."""
