<?php
// Maps the file QUERY_STRING of 100 MiB, touches every page, and unmaps it.
$libc = FFI::cdef('int open(const char *p, int f); void *mmap(void *a, size_t n, int p, int f, int d, long o);'
    . ' int munmap(void *a, size_t n); int memcmp(const void *a, const void *b, size_t n); int close(int d);');
$n = 100 << 20;
$d = $libc->open($_SERVER['QUERY_STRING'], 0);
$p = $libc->mmap(null, $n, 1, 2, $d, 0);
echo $libc->memcmp($p, $p + ($n >> 1), $n >> 1);
$libc->munmap($p, $n);
$libc->close($d);
