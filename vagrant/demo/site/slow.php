<?php
// Waits, and does nothing to memory.
usleep(60_000);
header('Content-Type: text/plain');
echo "slow\n";
