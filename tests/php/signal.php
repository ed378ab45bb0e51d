<?php
// The worker is hit by the signal QUERY_STRING in mid-request.
$libc = FFI::cdef('int raise(int n);');
$libc->raise((int) $_SERVER['QUERY_STRING']);
FFI::cdef('int pause(void);')->pause();
