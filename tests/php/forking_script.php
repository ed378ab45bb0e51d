<?php
// Forks two children; all wait until the file named in the first argument is there.
for ($i = 0, $parent = true; $i < 2 && $parent; $i++) {
    $parent = pcntl_fork() !== 0;
}
while (!file_exists($argv[1])) {
    clearstatcache();
    usleep(2000);
}
while ($parent && pcntl_wait($status) > 0) {
}
exit($parent ? 3 : 0);
