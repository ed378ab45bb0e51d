<?php
register_shutdown_function(function () {
    exit(255);
});
