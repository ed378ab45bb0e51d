<?php
// Harmless: takes little, gives it all back.
header('Content-Type: text/plain');
echo "hello\n";
