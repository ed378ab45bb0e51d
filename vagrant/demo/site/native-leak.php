<?php
// Leaks 524272 bytes a request, natively: memory_get_usage() does not see them, and no limit stops them.
$libc = FFI::cdef('void *malloc(size_t n); void *memset(void *p, int c, size_t n);');
$libc->memset($libc->malloc(524272), 1, 524272);
header('Content-Type: text/plain');
echo memory_get_usage(), "\n";
