<?php
// Keeps 1,072 native bytes for each of the calls asked for: 34,304 by default.
require __DIR__ . '/keep.inc';
Translations::bind((int)($_SERVER['QUERY_STRING'] ?: 32));
echo "leak\n";
