"""phptrace doctor: what can be traced here, and the command that mends what cannot."""
