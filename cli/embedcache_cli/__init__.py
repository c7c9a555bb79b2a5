"""The command `embedcache`: parse, call one pipeline function, print."""
