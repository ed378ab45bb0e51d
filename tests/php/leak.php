<?php
// Leaks QUERY_STRING bytes by malloc, touched.
$libc = FFI::cdef('void *malloc(size_t n); void *memset(void *p, int c, size_t n);');
$bytes = (int) $_SERVER['QUERY_STRING'];
$libc->memset($libc->malloc($bytes), 1, $bytes);
echo 'leaked';
