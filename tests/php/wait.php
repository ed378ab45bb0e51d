<?php
// Runs until the file named in QUERY_STRING is there.
while (!file_exists($_SERVER['QUERY_STRING'])) {
    clearstatcache();
    usleep(2000);
}
echo 'waited';
