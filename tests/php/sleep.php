<?php
// Sleeps for the seconds in QUERY_STRING, and prints what sleep() returns: 0, or the seconds that were left when a signal ended it.
echo sleep((int) $_SERVER['QUERY_STRING']);
