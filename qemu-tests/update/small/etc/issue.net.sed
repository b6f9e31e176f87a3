s/$/, version 3/
