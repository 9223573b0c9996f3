"""Banks beside the plain matrix, a file a kind; `parts.bank` says what each must give."""
