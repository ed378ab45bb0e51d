"""Watches workers with BPF programs. The only package that uses bcc."""
