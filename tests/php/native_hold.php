<?php
// Allocates a native block of 100,003 bytes, and frees the one that it allocated so many requests ago as QUERY_STRING
// says. The file `held` next to it has their addresses.
$c = FFI::cdef('uintptr_t malloc(size_t); void free(uintptr_t);');
$held = array_filter(explode("\n", file_get_contents(__DIR__ . '/held')));
$held[] = $c->malloc(100_003);
if (count($held) > (int) $_SERVER['QUERY_STRING']) {
    $c->free((int) array_shift($held));
}
file_put_contents(__DIR__ . '/held', implode("\n", $held));
