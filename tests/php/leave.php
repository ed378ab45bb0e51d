<?php FFI::cdef('void _exit(int n);')->_exit(7);
