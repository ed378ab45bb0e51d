<?php
// Has four threads of a library allocate, resize and free; each keeps a block of 5,008 bytes.
FFI::cdef('void run(void);', $_SERVER['QUERY_STRING'])->run();
echo 'done';
