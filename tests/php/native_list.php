<?php
// A list that each request makes 4,096 bytes longer, in a block that realloc() moves. The file `list` next to it has the
// block's address and size.
$c = FFI::cdef('uintptr_t realloc(uintptr_t, size_t);');
[$block, $size] = array_map(intval(...), explode(' ', file_get_contents(__DIR__ . '/list')));
$size += 4096;
file_put_contents(__DIR__ . '/list', $c->realloc($block, $size) . " $size");
