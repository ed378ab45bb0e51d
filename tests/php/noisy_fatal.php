<?php
// A fatal error, after which a shutdown function raises a warning: PHP's last error is the warning.
register_shutdown_function(fn () => trigger_error('and then this', E_USER_WARNING));
throw new LogicException('nobody catches this');
