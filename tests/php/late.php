<?php
// Fails when the script is over.
register_shutdown_function(fn () => throw new LogicException('too late'));
echo 'so far, so good';
