<?php echo shell_exec('echo from a child');
