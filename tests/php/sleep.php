<?php
// What sleep() says: 0, or the seconds that were left when a signal ended it.
echo sleep(2);
