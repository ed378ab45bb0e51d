<?php
// ?FIRST-MICROSECONDS-THEN: allocates and frees so many native blocks, sleeps, and allocates and frees more.
[$first, $microseconds, $then] = array_map(intval(...), explode('-', $_SERVER['QUERY_STRING']));
$c = FFI::cdef('void *malloc(size_t); void free(void *);');
for ($i = 0; $i < $first; $i++) {
    $c->free($c->malloc(1008));
}
usleep($microseconds);
for ($i = 0; $i < $then; $i++) {
    $c->free($c->malloc(1008));
}
echo 'done';
