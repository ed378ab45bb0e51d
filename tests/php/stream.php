<?php
// Sends a line every 20 ms until the client goes away, as an event stream does.
while (!connection_aborted()) {
    echo "data: now\n\n";
    ob_get_level() and ob_flush();
    flush();
    usleep(20_000);
}
