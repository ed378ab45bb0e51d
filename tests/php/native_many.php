<?php
// Allocates as many native blocks as QUERY_STRING says, of 1,024 bytes, and frees them all.
$c = FFI::cdef('uintptr_t malloc(size_t); void free(uintptr_t);');
$blocks = [];
for ($i = 0; $i < (int) $_SERVER['QUERY_STRING']; $i++) {
    $blocks[] = $c->malloc(1009);
}
foreach ($blocks as $block) {
    $c->free($block);
}
echo count($blocks);
