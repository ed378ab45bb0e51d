<?php echo bin2hex($_SERVER['REQUEST_URI'] ?? '(none)'), ' ', $_SERVER['REQUEST_METHOD'];
