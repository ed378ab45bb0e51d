<?php
// Needs so many MiB of Zend's heap, and stays at that peak for so many ms: peak_for.php?7,100
[$mib, $ms] = array_map('intval', explode(',', $_SERVER['QUERY_STRING']));
$block = str_repeat('x', $mib << 20);
usleep($ms * 1000);
echo strlen($block) >> 20;
