<?php
// Grows the C heap by many small blocks, keeps them; then mremap: a big block that realloc() lets grow.
$libc = FFI::cdef('void *malloc(size_t n); void *realloc(void *p, size_t n); void *memset(void *p, int c, size_t n);');
for ($i = 0; $i < 500; $i++) {
    $libc->memset($libc->malloc(4001), 1, 4001);
}
$p = $libc->malloc(1000003);
for ($n = 1; $n < 6; $n++) {
    $p = $libc->realloc($p, 1000003 + $n * 700001);
}
echo 'kept';
