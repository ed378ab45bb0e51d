<?php
// One huge block of QUERY_STRING bytes, which Zend maps and unmaps by itself.
$s = str_repeat('x', (int) $_SERVER['QUERY_STRING']);
echo strlen($s);
