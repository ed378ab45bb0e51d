<?php
// Starts a thread that goes on when this request is over: background() of the library that QUERY_STRING names.
FFI::cdef('void background(void);', $_SERVER['QUERY_STRING'])->background();
echo 'started';
