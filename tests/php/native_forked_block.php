<?php
// Keeps a native block of 100,003 bytes; a child that it forks frees its copy of it, allocates others, and ends.
$c = FFI::cdef('uintptr_t malloc(size_t); void free(uintptr_t); int fork(void); void _exit(int); int wait(int *);');
$block = $c->malloc(100_003);
if ($c->fork() === 0) {
    $c->free($block);
    for ($i = 0; $i < 100; $i++) {
        $c->malloc(100_003);
    }
    $c->_exit(0);
}
$c->wait(null);
echo 'done';
