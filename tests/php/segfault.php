<?php
$p = FFI::cast('char *', FFI::cast('void *', 8));
$p[0] = 'x';
