<?php
// Keeps a native block of 100,003 bytes that another thread allocates.
$c = FFI::cdef('
    int malloc(void *size);
    int pthread_create(unsigned long *thread, void *attributes, int (*start)(void *), void *argument);
    int pthread_join(unsigned long thread, void *result);
');
$thread = $c->new('unsigned long');
$c->pthread_create(FFI::addr($thread), null, $c->malloc, $c->cast('void *', 100_003));
$c->pthread_join($thread->cdata, null);
echo 'done';
