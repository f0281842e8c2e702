"""What an operating system gives, held to what programs here need: printing, files and locks."""
