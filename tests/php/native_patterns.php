<?php
// Compiles as many regular expressions as QUERY_STRING says, which nobody uses again: PCRE's cache holds them until the
// worker ends.
for ($i = 0; $i < (int) $_SERVER['QUERY_STRING']; $i++) {
    preg_match('/' . bin2hex(random_bytes(12)) . '/', '');
}
echo 'done';
