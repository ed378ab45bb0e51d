<?php
// Answers, goes on, and meets its fatal error then.
echo 'answered';
fastcgi_finish_request();
throw new RuntimeException('nobody catches this');
