<?php
// Sets the processor's rounding to QUERY_STRING if there is one, which stays; says what it is: fenv.h.
$libm = FFI::cdef('int fesetround(int mode); int fegetround(void);', 'libm.so.6');
if ($_SERVER['QUERY_STRING'] !== '') {
    $libm->fesetround((int) $_SERVER['QUERY_STRING']);
}
echo $libm->fegetround();
