<?php
// Names that PHP sees, in hexadecimal: script, uri, method.
echo implode(' ', array_map(fn ($name) => bin2hex($_SERVER[$name]), ['SCRIPT_FILENAME', 'REQUEST_URI', 'REQUEST_METHOD']));
