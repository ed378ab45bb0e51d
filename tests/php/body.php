<?php
// Reads the body of the request; answers with its size.
echo strlen(file_get_contents('php://input'));
