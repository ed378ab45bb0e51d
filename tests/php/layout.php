<?php
// Includes one of three files of the same layout in memory; each maps a number of pages that tells it.
$libc = FFI::cdef('void *mmap(void *a, size_t n, int prot, int flags, int fd, long offset);');
require __DIR__ . "/layout_{$_SERVER['QUERY_STRING']}.inc";
echo 'grown';
