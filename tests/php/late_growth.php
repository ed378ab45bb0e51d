<?php
// Grows, says so by a file, and waits until the other file named in QUERY_STRING is there.
[$says, $awaits] = explode(',', $_SERVER['QUERY_STRING']);
$libc = FFI::cdef('void *malloc(size_t n); void *memset(void *p, int c, size_t n);');
$libc->memset($libc->malloc(3_000_017), 1, 3_000_017);
touch($says);
while (!file_exists($awaits)) {
    clearstatcache();
    usleep(2000);
}
