<?php
// Answers, and goes on working: the request is not over when its answer is.
echo 'answered';
fastcgi_finish_request();
$libc = FFI::cdef('void *malloc(size_t n); void *memset(void *p, int c, size_t n);');
$libc->memset($libc->malloc(3000017), 1, 3000017);
