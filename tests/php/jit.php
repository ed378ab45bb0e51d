<?php
// Whether this worker compiles to machine code.
echo opcache_get_status(false)['jit']['on'] ?? false;
